// Child of joulewatch's process protocol (../../PROTOCOL.md) on FINN's C++ driver library (finn-cpp-driver, v1.2 interface).
//   build:  joulewatch.cmake beside this file
//   run:    joulewatch profile --runtime process --network vgg10 --option command="./joulewatch_child acceleratorconfig.json"
// The driver's own program times packing and unpacking in loops of their own and its exit status says nothing; this child
// stamps the steps of each inference, on data that was packed for it. The library copies to the card in the call that starts
// the accelerator: copy_in is the copy into the mapped buffer, the rest of it is in execute.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "../cpp/joulewatch.hpp"  // requests, answers and times

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

using joulewatch::Failure;
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

struct Accelerator {
    std::string path;
    std::unique_ptr<Finn::Driver<true>> driver;
    std::shared_ptr<Finn::ExtendedBufferDescriptor> in, out;
    unsigned device = 0, size = 0;
    Finn::vector<Input> inputs;
    Finn::vector<Output> outputs;

    std::string describe() {
        std::string text = "\"runtime\":\"finn-cpp-driver\",\"precision\":\"" + precision() + "\",\"offers\":[\"check\"]";
        if (!driver) return text;
        return text + ",\"provider\":\"xrt\",\"device\":\"fpga " + std::to_string(device) + "\",\"details\":{\"configuration\":" +
               joulewatch::in_json(path) + ",\"input_bits\":" + std::to_string(InputFinnType().bitwidth()) + ",\"output_bits\":" +
               std::to_string(OutputFinnType().bitwidth()) + ",\"copy_to_card_in\":\"execute\"}";
    }
    void load(const std::string& request) {
        const std::string wanted = joulewatch::field(request, "precision");
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
    void prepare(long frames) {
        const auto batch = static_cast<unsigned>(frames);
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
    void batch(joulewatch::Stamps& stamps) {  // one inference of a whole batch
        auto& handler = driver->getDeviceHandler(device);
        auto shape = [this](auto of) { return of[0] = size, of; };
        stamps.begin();
        const auto folded = shape(in->foldedShape);
        const Finn::DynamicMdSpan view(inputs.begin(), inputs.end(), folded);
        const auto packed = Finn::packMultiDimensionalInputs<InputFinnType>(inputs.begin(), inputs.end(), view, folded.back());
        stamps("pack");
        auto& buffer = handler.getInputBuffer(in->kernelName);
        if (packed.size() != buffer->size(SIZE_SPECIFIER::TOTAL_DATA_SIZE))
            throw Failure("bad_configuration", "the packed input has " + std::to_string(packed.size()) + " bytes, its buffer " +
                                                   std::to_string(buffer->size(SIZE_SPECIFIER::TOTAL_DATA_SIZE)) + ": header and configuration differ");
        buffer->store(std::span<const uint8_t>(packed.data(), packed.size()));
        stamps("copy_in");
        if (!handler.run() || !handler.wait()) throw Failure("failed", "the accelerator did not run");
        stamps("execute");
        handler.read();
        auto raw = handler.getOutputBuffer(out->kernelName)->getData();
        stamps("copy_out");
        const Finn::DynamicMdSpan raw_view(raw.begin(), raw.end(), shape(out->packedShape));
        outputs = Finn::unpackMultiDimensionalOutputs<OutputFinnType>(raw.begin(), raw.end(), raw_view, shape(out->foldedShape));
        stamps("unpack");
    }
    std::string check() {
        prepare(CHECK_BATCH);
        joulewatch::Stamps none;
        batch(none);
        double sum = 0;  // all zeros give 0, which the harness refuses; option reference=weighted_sum=NUMBER holds it to a value
        for (size_t n = 0; n < outputs.size(); n++) sum += static_cast<double>(outputs[n]) * (n % 7 + 1);
        char text[80];
        std::snprintf(text, sizeof text, "{\"weighted_sum\":{\"value\":%.12g}}", sum);
        return text;
    }
};

int main(int count, char** words) {
    if (count != 2) return std::fprintf(stderr, "usage: %s acceleratorconfig.json\n", words[0]), 2;
    Accelerator accelerator;
    accelerator.path = words[1];
    return joulewatch::serve(accelerator);
}
