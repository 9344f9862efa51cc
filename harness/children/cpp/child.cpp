// Reference child of joulewatch's process protocol (../../PROTOCOL.md), in C++17: replace Matmul with your accelerator.
//   build:  g++ -std=c++17 -O3 -march=native -o child child.cpp
//   make:   child: child.cpp joulewatch.hpp ; $(CXX) -std=c++17 -O3 -march=native -o $@ $<
//   run:    joulewatch profile --runtime process --network matmul --option command=./child
// It multiplies a batch of vectors of 256 numbers by 256 x 256 weights. Inputs are small multiples of 1/8, weights of
// 1/16, so float sums are exact: every correct child computes the same check, in any language and order of sums.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "joulewatch.hpp"  // requests, answers and times; copy it together with your child

constexpr int WIDTH = 256;
constexpr long LARGEST_BATCH = 1 << 16, CHECK_BATCH = 8;
constexpr double REFERENCE = 3049.8203125;  // sum of relu(x w)[b, j] * (j % 7 + 1), computed in integers

struct Matmul {
    std::vector<float> weights, host_in, input, output, host_out;
    long size = 0;

    std::string describe() {
        return "\"runtime\":\"cpp\",\"runtime_version\":\"" __VERSION__ "\",\"precision\":\"fp32\",\"device\":\"cpu\","
               "\"threads\":1,\"offers\":[\"check\"],\"details\":{\"width\":256}";
    }
    void load(const std::string& request) {
        const std::string precision = joulewatch::field(request, "precision");
        if (precision != "native" && precision != "fp32")
            throw joulewatch::Failure("bad_configuration", "this child computes in fp32, not in " + precision);
        weights.resize(WIDTH * WIDTH);
        for (int i = 0; i < WIDTH; i++)
            for (int j = 0; j < WIDTH; j++) weights[i * WIDTH + j] = ((i * 13 + j * 5) % 19 - 9) / 16.0f;
    }
    void prepare(long batch) {
        if (batch > LARGEST_BATCH)
            throw joulewatch::Failure("unsupported_batch", "at most " + std::to_string(LARGEST_BATCH));
        for (auto* buffer : {&host_in, &input, &output, &host_out}) buffer->assign(batch * WIDTH, 0.0f);
        for (long b = 0; b < batch; b++)
            for (int i = 0; i < WIDTH; i++) host_in[b * WIDTH + i] = ((b * 31 + i * 7) % 17 - 8) / 8.0f;
        size = batch;
    }
    void batch(joulewatch::Stamps& stamps) {  // runs one batch
        stamps.begin();
        std::copy(host_in.begin(), host_in.end(), input.begin());
        stamps("copy_in");
        for (long b = 0; b < size; b++) {
            float* row = &output[b * WIDTH];
            std::fill(row, row + WIDTH, 0.0f);
            for (int i = 0; i < WIDTH; i++) {
                const float x = input[b * WIDTH + i], *w = &weights[i * WIDTH];
                for (int j = 0; j < WIDTH; j++) row[j] += x * w[j];
            }
            for (int j = 0; j < WIDTH; j++) row[j] = std::max(row[j], 0.0f);
        }
        stamps("execute");
        std::copy(output.begin(), output.end(), host_out.begin());
        stamps("copy_out");
    }
    std::string check() {
        prepare(CHECK_BATCH);
        joulewatch::Stamps none;
        batch(none);
        double sum = 0;
        for (size_t n = 0; n < host_out.size(); n++) sum += host_out[n] * (double)(n % WIDTH % 7 + 1);
        char text[160];
        std::snprintf(text, sizeof text, "{\"weighted_sum\":{\"value\":%.12g,\"reference\":%.12g,\"tolerance\":1e-6}}",
                      sum, REFERENCE);
        return text;
    }
};

int main() {
    Matmul network;
    return joulewatch::serve(network);
}
