// The common part of all children of joulewatch's process protocol (../../PROTOCOL.md), in C++17: requests, answers,
// times.
// A network is any class with
//   std::string describe();             fields after "protocol", as JSON; read again after load
//   void load(const std::string& request);
//   void prepare(long batch);           drops the previous buffers
//   void batch(joulewatch::Stamps&);    runs one batch; the device has finished when it returns
//   std::string check();                "values" as JSON; only called if describe offers it
// They throw Failure. main() ends with  return joulewatch::serve(network);
// Requests are flat objects on one line. The keys and values that a child reads have no escapes, so no JSON library is
// needed.
#pragma once
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace joulewatch {

struct Failure : std::runtime_error {  // codes: unsupported_batch, out_of_memory, bad_configuration, unknown_op, failed
    Failure(std::string why, const std::string& text) : std::runtime_error(text), code(std::move(why)) {}
    std::string code;
};

inline int64_t now_ns() {  // the clock of the harness
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

// The text after "key": in a flat request, a string without its quotes.
inline std::string field(const std::string& request, const std::string& key) {
    size_t at = request.find("\"" + key + "\":");
    if (at == std::string::npos) return "";
    at = request.find_first_not_of(' ', at + key.size() + 3);
    if (at == std::string::npos) return "";
    if (request[at] == '"') return request.substr(at + 1, request.find('"', at + 1) - at - 1);
    return request.substr(at, request.find_first_of(",} ", at) - at);
}
inline long number(const std::string& request, const char* key) { return std::atol(field(request, key).c_str()); }

inline std::string in_json(const std::string& text) {  // quoted; control and non-ASCII characters become spaces
    std::string quoted = "\"";
    for (unsigned char c : text) {
        if (c == '"' || c == '\\') quoted += '\\';
        quoted += c < 32 || c > 126 ? ' ' : static_cast<char>(c);
    }
    return quoted + "\"";
}

// Phases of a call: begin() starts a batch, stamps("execute") marks the end of a phase. When off, no clock is read.
class Stamps {
  public:
    explicit Stamps(bool wanted = false) : on(wanted) {}
    void begin() {
        if (on) last_ns = now_ns();
    }
    void operator()(std::string_view phase) {
        if (!on) return;
        const int64_t now = now_ns();
        Span& span = of(phase);
        span.count++;
        span.ns += now - std::exchange(last_ns, now);
    }
    std::string json() const {
        std::string text;
        for (const Span& span : spans)
            text += std::string(text.empty() ? "" : ",") + "\"" + std::string(span.phase) + "\":{\"count\":" +
                    std::to_string(span.count) + ",\"ns\":" + std::to_string(span.ns) + "}";
        return "{" + text + "}";
    }

  private:
    struct Span {
        std::string_view phase;
        long count = 0;
        int64_t ns = 0;
    };
    Span& of(std::string_view phase) {
        for (Span& span : spans)
            if (span.phase == phase) return span;
        spans.push_back({phase});
        return spans.back();
    }
    bool on;
    int64_t last_ns = 0;
    std::vector<Span> spans;
};

template <class Network>
std::string run(Network& network, const std::string& request) {
    const long batches = number(request, "batches");
    const bool stamped = field(request, "batch_ends") == "true", timed = field(request, "phases") == "true";
    Stamps stamps(timed);
    std::vector<int64_t> ends(stamped ? batches : 0);
    const int64_t t0 = now_ns();
    for (long n = 0; n < batches; n++) {
        network.batch(stamps);
        if (stamped) ends[n] = now_ns() - t0;
    }
    const int64_t t1 = now_ns();
    std::string text = ",\"batches\":" + std::to_string(batches) + ",\"t0_ns\":" + std::to_string(t0) +
                       ",\"t1_ns\":" + std::to_string(t1);
    if (timed) text += ",\"phases\":" + stamps.json();
    for (size_t n = 0; n < ends.size(); n++) text += (n ? "," : ",\"batch_ends_ns\":[") + std::to_string(ends[n]);
    return ends.empty() ? text : text + "]";
}

template <class Network>
std::string answer_to(Network& network, const std::string& request) {
    const std::string op = field(request, "op");
    if (op == "describe") return ",\"protocol\":1," + network.describe();
    if (op == "load") return network.load(request), "";
    if (op == "prepare") return network.prepare(number(request, "batch")), "";
    if (op == "run") return run(network, request);
    if (op == "check") return ",\"values\":" + network.check();
    if (op == "ping" || op == "close") return "";
    throw Failure("unknown_op", "no operation " + op);
}

// Answers requests until joulewatch closes the child or stdin ends, which means that joulewatch has exited.
template <class Network>
int serve(Network& network) {
    // Libraries may print to stdout: keep it for messages, and redirect everything else to stderr.
    FILE* messages = fdopen(dup(1), "w");
    dup2(2, 1);
    for (std::string request; std::getline(std::cin, request);) {
        const auto failed = [](const std::string& code, const std::string& text) {
            return "false,\"error\":{\"code\":\"" + code + "\",\"text\":" + in_json(text) + "}";
        };
        std::string outcome;
        try {
            outcome = "true" + answer_to(network, request);
        } catch (const std::bad_alloc&) {
            outcome = failed("out_of_memory", "no memory for these buffers");
        } catch (const Failure& error) {
            outcome = failed(error.code, error.what());
        } catch (const std::exception& error) {  // from a library
            outcome = failed("failed", error.what());
        }
        std::fprintf(messages, "{\"id\":%ld,\"ok\":%s}\n", number(request, "id"), outcome.c_str());
        std::fflush(messages);
        if (field(request, "op") == "close") break;
    }
    return 0;
}

}  // namespace joulewatch
