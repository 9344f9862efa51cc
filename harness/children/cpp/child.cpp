// Reference child of joulewatch's process protocol (../../PROTOCOL.md), in C++17: replace Matmul by your accelerator.
//   build:  g++ -std=c++17 -O3 -march=native -o child child.cpp
//   make:   child: child.cpp ; $(CXX) -std=c++17 -O3 -march=native -o $@ $<
//   run:    joulewatch profile --runtime process --network matmul --option command=./child
// A batch of 256 numbers each times 256 x 256 weights. They are small fractions of two, so that float sums are exact:
// every correct child computes the same check, whatever its language or order of sums.
// Requests are flat objects on one line, keys and values without escapes where this child reads them: no JSON
// library is needed.
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

constexpr int WIDTH = 256;
constexpr long LARGEST_BATCH = 1 << 16, CHECK_BATCH = 8;
constexpr double REFERENCE = 3049.8203125;  // sum of relu(x w)[b, j] * (j % 7 + 1), worked out in integers

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

struct Span {
    const char* name;
    long count = 0;
    int64_t ns = 0;
};

struct Matmul {
    std::vector<float> weights, host_in, input, output, host_out;
    Span spans[3] = {{"copy_in"}, {"execute"}, {"copy_out"}};
    long size = 0;

    void load(const std::string& precision) {
        if (precision != "native" && precision != "fp32")
            throw Failure("bad_configuration", "this child computes in fp32, not in " + precision);
        weights.resize(WIDTH * WIDTH);
        for (int i = 0; i < WIDTH; i++)
            for (int j = 0; j < WIDTH; j++) weights[i * WIDTH + j] = ((i * 13 + j * 5) % 19 - 9) / 16.0f;
    }
    void prepare(long batch) {
        if (batch > LARGEST_BATCH) throw Failure("unsupported_batch", "at most " + std::to_string(LARGEST_BATCH));
        for (auto* buffer : {&host_in, &input, &output, &host_out}) buffer->assign(batch * WIDTH, 0.0f);
        for (long b = 0; b < batch; b++)
            for (int i = 0; i < WIDTH; i++) host_in[b * WIDTH + i] = ((b * 31 + i * 7) % 17 - 8) / 8.0f;
        size = batch;
    }
    void batch() {  // one inference of a whole batch
        int64_t t0 = now_ns();
        std::copy(host_in.begin(), host_in.end(), input.begin());
        int64_t t1 = now_ns();
        for (long b = 0; b < size; b++) {
            float* row = &output[b * WIDTH];
            std::fill(row, row + WIDTH, 0.0f);
            for (int i = 0; i < WIDTH; i++) {
                const float x = input[b * WIDTH + i], *w = &weights[i * WIDTH];
                for (int j = 0; j < WIDTH; j++) row[j] += x * w[j];
            }
            for (int j = 0; j < WIDTH; j++) row[j] = std::max(row[j], 0.0f);
        }
        int64_t t2 = now_ns();
        std::copy(output.begin(), output.end(), host_out.begin());
        int64_t times[] = {t0, t1, t2, now_ns()};
        for (int i = 0; i < 3; i++) spans[i].count++, spans[i].ns += times[i + 1] - times[i];
    }
};

std::string run(Matmul& network, const std::string& request) {
    const long batches = number(request, "batches");
    const bool stamped = field(request, "batch_ends") == "true";
    for (auto& span : network.spans) span.count = span.ns = 0;
    std::vector<int64_t> ends(stamped ? batches : 0);
    const int64_t t0 = now_ns();
    for (long n = 0; n < batches; n++) {
        network.batch();
        if (stamped) ends[n] = now_ns() - t0;
    }
    const int64_t t1 = now_ns();
    std::string text = ",\"batches\":" + std::to_string(batches) + ",\"t0_ns\":" + std::to_string(t0) +
                       ",\"t1_ns\":" + std::to_string(t1) + ",\"batch_ends_ns\":[";
    for (size_t n = 0; n < ends.size(); n++) text += (n ? "," : "") + std::to_string(ends[n]);
    text += "]";
    if (field(request, "phases") == "true") {
        text += ",\"phases\":{";
        for (auto& span : network.spans)
            text += std::string(&span == network.spans ? "" : ",") + "\"" + span.name + "\":{\"count\":" +
                    std::to_string(span.count) + ",\"ns\":" + std::to_string(span.ns) + "}";
        text += "}";
    }
    return text;
}

std::string answer_to(Matmul& network, const std::string& request) {
    const std::string op = field(request, "op");
    if (op == "describe")
        return ",\"protocol\":1,\"runtime\":\"cpp\",\"runtime_version\":\"" __VERSION__ "\",\"precision\":\"fp32\","
               "\"device\":\"cpu\",\"threads\":1,\"offers\":[\"check\"],\"details\":{\"width\":256}";
    if (op == "load") return network.load(field(request, "precision")), "";
    if (op == "prepare") return network.prepare(number(request, "batch")), "";
    if (op == "run") return run(network, request);
    if (op == "ping" || op == "close") return "";
    if (op != "check") throw Failure("unknown_op", "no operation " + op);
    network.prepare(CHECK_BATCH);
    network.batch();
    double sum = 0;
    for (size_t n = 0; n < network.host_out.size(); n++) sum += network.host_out[n] * (double)(n % WIDTH % 7 + 1);
    char text[160];
    std::snprintf(text, sizeof text, ",\"values\":{\"weighted_sum\":{\"value\":%.12g,\"reference\":%.12g,\"tolerance\":1e-6}}",
                  sum, REFERENCE);
    return text;
}

int main() {
    // Libraries write on stdout when they like: keep it for messages, and send the rest to stderr.
    FILE* messages = fdopen(dup(1), "w");
    dup2(2, 1);
    Matmul network;
    for (std::string request; std::getline(std::cin, request);) {  // ends when joulewatch does
        std::string said;
        try {
            said = "true" + answer_to(network, request);
        } catch (const std::bad_alloc&) {
            said = "false,\"error\":{\"code\":\"out_of_memory\",\"text\":\"no memory for these buffers\"}";
        } catch (const Failure& error) {
            said = "false,\"error\":{\"code\":\"" + error.code + "\",\"text\":\"" + error.what() + "\"}";
        }
        std::fprintf(messages, "{\"id\":%ld,\"ok\":%s}\n", number(request, "id"), said.c_str());
        std::fflush(messages);
        if (field(request, "op") == "close") break;
    }
}
