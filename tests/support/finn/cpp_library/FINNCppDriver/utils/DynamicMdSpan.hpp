#pragma once
#include <iterator>
#include <stdexcept>
#include <vector>
namespace Finn {
template <typename I>
struct DynamicMdSpan {
    DynamicMdSpan(I first, I last, const std::vector<unsigned>& shape) {
        long elements = 1;
        for (auto size : shape) elements *= size;
        if (std::distance(first, last) != elements) throw std::runtime_error("shape and elements differ");
    }
};
}  // namespace Finn
