// Child of joulewatch's process protocol (../../PROTOCOL.md) on FINN's C++ driver library (finn-cpp-driver, v1.2 interface).
//   build:  joulewatch.cmake beside this file
//   run:    joulewatch profile --runtime process --network vgg10 --option command="./joulewatch_child acceleratorconfig.json"
// The driver's own program times packing and unpacking in loops of their own and its exit status says nothing; this child
// stamps the steps of each inference, on data that was packed for it. The library copies to the card in the call that starts
// the accelerator: copy_in is the copy into the mapped buffer, the rest of it is in execute.
#include <time.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <new>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <FINNCppDriver/core/BaseDriver.hpp>
#include <FINNCppDriver/utils/DataPacking.hpp>
#include <FINNCppDriver/utils/DynamicMdSpan.hpp>
#define TEXT(x) #x
#define TEXT_OF(x) TEXT(x)
#ifdef FINN_HEADER_LOCATION  // the types of this accelerator, written by the FINN compiler
#include TEXT_OF(FINN_HEADER_LOCATION)
#else
#include <FINNCppDriver/config/FinnDriverUsedDatatypes.h>
#endif

constexpr unsigned CHECK_BATCH = 8;
using Input = std::conditional_t<InputFinnType().isInteger(), Finn::UnpackingAutoRetType::IntegralType<InputFinnType>, float>;
using Output = Finn::UnpackingAutoRetType::AutoRetType<OutputFinnType>;

// What results call it: what the user says, for the library knows the widths at the border only.
std::string precision() {
#ifdef PRECISION
    return PRECISION;
#else
    const InputFinnType type;
    return (!type.isInteger() ? "float" : type.min() < 0 ? "int" : "uint") + std::to_string(type.bitwidth()) + "-input";
#endif
}

struct Failure : std::runtime_error {  // codes: unsupported_batch, out_of_memory, bad_configuration, unknown_op, failed
    Failure(std::string code, const std::string& text) : std::runtime_error(text), code(std::move(code)) {}
    std::string code;
};

int64_t now_ns() {  // the clock of the harness
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

// The text after "key": in a flat request, a string without its quotes.
std::string field(const std::string& request, const std::string& key) {
    size_t at = request.find("\"" + key + "\":");
    if (at == std::string::npos) return "";
    at = request.find_first_not_of(' ', at + key.size() + 3);
    if (at == std::string::npos) return "";
    if (request[at] == '"') return request.substr(at + 1, request.find('"', at + 1) - at - 1);
    return request.substr(at, request.find_first_of(",} ", at) - at);
}
long number(const std::string& request, const char* key) { return std::atol(field(request, key).c_str()); }
std::string in_json(const std::string& text) {  // for JSON; whatever cannot stand there becomes a space
    std::string said;
    for (unsigned char c : text) (c == '"' || c == '\\') ? said += {'\\', static_cast<char>(c)} : said += c < 32 || c > 126 ? ' ' : c;
    return "\"" + said + "\"";
}

struct Span {
    const char* name;
    long count = 0;
    int64_t ns = 0;
};

struct Accelerator {
    std::string path;
    std::unique_ptr<Finn::Driver<true>> driver;
    std::shared_ptr<Finn::ExtendedBufferDescriptor> in, out;
    unsigned device = 0, size = 0;
    Finn::vector<Input> inputs;
    Finn::vector<Output> outputs;
    Span spans[5] = {{"pack"}, {"copy_in"}, {"execute"}, {"copy_out"}, {"unpack"}};

    void load(const std::string& wanted) {
        if (wanted != "native" && wanted != precision())
            throw Failure("bad_configuration", "this child was built as " + precision() + ", not " + wanted);
        driver.reset();  // an FPGA holds one design
        const auto config = Finn::createConfigFromPath(path);
        if (config.deviceWrappers.size() != 1 || config.deviceWrappers[0].idmas.size() != 1 || config.deviceWrappers[0].odmas.size() != 1)
            throw Failure("bad_configuration", path + ": one device with one input and one output is wanted");
        const auto& wrapper = config.deviceWrappers[0];
        in = std::dynamic_pointer_cast<Finn::ExtendedBufferDescriptor>(wrapper.idmas[0]);
        out = std::dynamic_pointer_cast<Finn::ExtendedBufferDescriptor>(wrapper.odmas[0]);
        device = wrapper.xrtDeviceIndex;
        driver = std::make_unique<Finn::Driver<true>>(config, size = 1);
    }
    void prepare(unsigned batch) {
        if (!driver) throw Failure("failed", "nothing is loaded");
#ifndef FINN_OUTPUT_BUFFER_GROWS  // v1.2 allocates the output for one frame and reads the whole batch from it
        const size_t frame = FinnUtils::shapeToElements(out->packedShape), room = FinnUtils::getActualBufferSize(frame);
        if (batch * frame > room)
            throw Failure("unsupported_batch", "at most " + std::to_string(room / frame) + ": the library's output buffer has " +
                                                   std::to_string(room) + " bytes (fixed? build with FINN_OUTPUT_BUFFER_GROWS)");
#endif
        driver->setBatchSize(size = batch);  // waits for 2 s whenever the size changes
        inputs.resize(FinnUtils::shapeToElements(in->normalShape) * batch);
        std::mt19937 random(0);
        const double low = std::is_same_v<Input, float> ? -1.0 : InputFinnType().min();
        const double high = std::is_same_v<Input, float> ? 1.0 : InputFinnType().max();
        for (auto& value : inputs) {
            const double x = low + (high - low) * (random() / 4294967295.0);
            value = static_cast<Input>(std::is_same_v<Input, float> ? x : std::nearbyint(x));
            if (InputFinnType().min() == -1 && InputFinnType().bitwidth() == 1) value = x < 0 ? -1 : 1;  // bipolar has no 0
        }
    }
    void batch() {  // one inference of a whole batch
        auto& handler = driver->getDeviceHandler(device);
        auto shape = [this](auto of) { return of[0] = size, of; };
        const int64_t t0 = now_ns();
        const auto folded = shape(in->foldedShape);
        const Finn::DynamicMdSpan view(inputs.begin(), inputs.end(), folded);
        const auto packed = Finn::packMultiDimensionalInputs<InputFinnType>(inputs.begin(), inputs.end(), view, folded.back());
        const int64_t t1 = now_ns();
        auto& buffer = handler.getInputBuffer(in->kernelName);
        if (packed.size() != buffer->size(SIZE_SPECIFIER::TOTAL_DATA_SIZE))
            throw Failure("bad_configuration", "the packed input has " + std::to_string(packed.size()) + " bytes, its buffer " +
                                                   std::to_string(buffer->size(SIZE_SPECIFIER::TOTAL_DATA_SIZE)) + ": header and configuration differ");
        buffer->store(std::span<const uint8_t>(packed.data(), packed.size()));
        const int64_t t2 = now_ns();
        if (!handler.run() || !handler.wait()) throw Failure("failed", "the accelerator did not run");
        const int64_t t3 = now_ns();
        handler.read();
        auto raw = handler.getOutputBuffer(out->kernelName)->getData();
        const int64_t t4 = now_ns();
        const Finn::DynamicMdSpan raw_view(raw.begin(), raw.end(), shape(out->packedShape));
        outputs = Finn::unpackMultiDimensionalOutputs<OutputFinnType>(raw.begin(), raw.end(), raw_view, shape(out->foldedShape));
        const int64_t times[] = {t0, t1, t2, t3, t4, now_ns()};
        for (int i = 0; i < 5; i++) spans[i].count++, spans[i].ns += times[i + 1] - times[i];
    }
};

std::string run(Accelerator& accelerator, const std::string& request) {
    const long batches = number(request, "batches");
    const bool stamped = field(request, "batch_ends") == "true";
    for (auto& span : accelerator.spans) span.count = span.ns = 0;
    std::vector<int64_t> ends(stamped ? batches : 0);
    const int64_t t0 = now_ns();
    for (long n = 0; n < batches; n++) {
        accelerator.batch();
        if (stamped) ends[n] = now_ns() - t0;
    }
    std::string text = ",\"batches\":" + std::to_string(batches) + ",\"t0_ns\":" + std::to_string(t0) + ",\"t1_ns\":" + std::to_string(now_ns());
    for (size_t n = 0; n < ends.size(); n++) text += (n ? "," : ",\"batch_ends_ns\":[") + std::to_string(ends[n]);
    if (!ends.empty()) text += "]";
    if (field(request, "phases") != "true") return text;
    text += ",\"phases\":{";
    for (auto& span : accelerator.spans)
        text += std::string(&span == accelerator.spans ? "" : ",") + "\"" + span.name + "\":{\"count\":" + std::to_string(span.count) +
                ",\"ns\":" + std::to_string(span.ns) + "}";
    return text + "}";
}

std::string answer_to(Accelerator& accelerator, const std::string& request) {
    const std::string op = field(request, "op");
    if (op == "describe") {
        std::string text = ",\"protocol\":1,\"runtime\":\"finn-cpp-driver\",\"precision\":\"" + precision() + "\",\"offers\":[\"check\"]";
        if (!accelerator.driver) return text;
        return text + ",\"provider\":\"xrt\",\"device\":\"fpga " + std::to_string(accelerator.device) + "\",\"details\":{\"configuration\":" +
               in_json(accelerator.path) + ",\"input_bits\":" + std::to_string(InputFinnType().bitwidth()) + ",\"output_bits\":" +
               std::to_string(OutputFinnType().bitwidth()) + ",\"copy_to_card_in\":\"execute\"}";
    }
    if (op == "load") return accelerator.load(field(request, "precision")), "";
    if (op == "prepare") return accelerator.prepare(number(request, "batch")), "";
    if (op == "run") return run(accelerator, request);
    if (op == "ping" || op == "close") return "";
    if (op != "check") throw Failure("unknown_op", "no operation " + op);
    accelerator.prepare(CHECK_BATCH);
    accelerator.batch();
    double sum = 0;  // all zeros give 0, which the harness refuses; option reference=weighted_sum=NUMBER holds it to a value
    for (size_t n = 0; n < accelerator.outputs.size(); n++) sum += static_cast<double>(accelerator.outputs[n]) * (n % 7 + 1);
    char text[80];
    std::snprintf(text, sizeof text, ",\"values\":{\"weighted_sum\":{\"value\":%.12g}}", sum);
    return text;
}

int main(int count, char** words) {
    FILE* messages = fdopen(dup(1), "w");  // the library logs on stdout: keep it for messages, and send the rest to stderr
    dup2(2, 1);
    if (count != 2) return std::fprintf(stderr, "usage: %s acceleratorconfig.json\n", words[0]), 2;
    Accelerator accelerator;
    accelerator.path = words[1];
    for (std::string request; std::getline(std::cin, request);) {  // ends when joulewatch does
        std::string said;
        auto failed = [](const std::string& code, const std::string& text) { return "false,\"error\":{\"code\":\"" + code + "\",\"text\":" + in_json(text) + "}"; };
        try {
            said = "true" + answer_to(accelerator, request);
        } catch (const std::bad_alloc&) {
            said = failed("out_of_memory", "no memory for these buffers");
        } catch (const Failure& error) {
            said = failed(error.code, error.what());
        } catch (const std::exception& error) {  // XRT and the library
            said = failed("failed", error.what());
        }
        std::fprintf(messages, "{\"id\":%ld,\"ok\":%s}\n", number(request, "id"), said.c_str());
        std::fflush(messages);
        if (field(request, "op") == "close") break;
    }
}
