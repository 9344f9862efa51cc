#pragma once
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>
#include <FINNCppDriver/utils/DataPacking.hpp>
enum class SIZE_SPECIFIER { TOTAL_DATA_SIZE };
namespace FinnUtils {
inline std::size_t shapeToElements(const std::vector<unsigned>& shape) {
    std::size_t elements = 1;
    for (auto size : shape) elements *= size;
    return elements;
}
inline std::size_t getActualBufferSize(std::size_t) { return 4096; }
}  // namespace FinnUtils
namespace Finn {
struct BufferDescriptor {
    std::string kernelName;
    std::vector<unsigned> packedShape;
    virtual ~BufferDescriptor() = default;
};
struct ExtendedBufferDescriptor : BufferDescriptor {
    std::vector<unsigned> normalShape, foldedShape;
};
struct DeviceWrapper {
    unsigned xrtDeviceIndex = 0;
    std::vector<std::shared_ptr<BufferDescriptor>> idmas, odmas;
};
struct Config {
    std::vector<DeviceWrapper> deviceWrappers;
};
inline Config createConfigFromPath(const std::filesystem::path& path) {
    std::string word;
    if (!(std::ifstream(path) >> word)) throw std::runtime_error("File \"" + path.string() + "\" not found. Abort.");
    auto made = [](const char* name) {
        auto dma = std::make_shared<ExtendedBufferDescriptor>();
        dma->kernelName = name;
        dma->packedShape = dma->normalShape = dma->foldedShape = {1, 3};
        return dma;
    };
    DeviceWrapper wrapper;
    wrapper.idmas.push_back(made("idma0"));
    if (word != "[no-output]") wrapper.odmas.push_back(made("odma0"));
    return {{wrapper}};
}
struct Buffer {
    std::vector<uint8_t> bytes;
    std::size_t size(SIZE_SPECIFIER) { return bytes.size(); }
    bool store(std::span<const uint8_t> data) { return std::copy(data.begin(), data.end(), bytes.begin()), true; }
    std::vector<uint8_t> getData() { return bytes; }
};
struct DeviceHandler {
    std::shared_ptr<Buffer> in = std::make_shared<Buffer>(), out = std::make_shared<Buffer>();
    std::vector<uint8_t> card;
    std::shared_ptr<Buffer>& getInputBuffer(const std::string&) { return in; }
    std::shared_ptr<Buffer>& getOutputBuffer(const std::string&) { return out; }
    bool run() {
        card = in->bytes;
        for (auto& byte : card) byte++;
        return true;
    }
    bool wait() { return true; }
    bool read() { return out->bytes = card, true; }
};
struct Library {
    DeviceHandler handler;
    Library(const Config&, unsigned batch) { setBatchSize(batch); }
    void setBatchSize(unsigned batch) {
        std::cout << "the library logs on stdout" << std::endl;
        handler.in->bytes.assign(3 * batch, 0);
        handler.out->bytes.assign(3 * batch, 0);
    }
    DeviceHandler& getDeviceHandler(unsigned) { return handler; }
};
}  // namespace Finn
