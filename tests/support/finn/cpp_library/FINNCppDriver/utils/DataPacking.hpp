// A fake of the part of FINN's C++ driver library that the child uses, written anew: a card that copies
// each byte of the input plus one into the output, 3 bytes in and 3 bytes out per frame.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>
#include <FINNCppDriver/utils/DynamicMdSpan.hpp>
namespace Finn {
template <typename T> using vector = std::vector<T>;
struct Int8 {
    constexpr bool isInteger() const { return true; }
    constexpr double min() const { return -128; }
    constexpr double max() const { return 127; }
    constexpr std::size_t bitwidth() const { return 8; }
};
namespace UnpackingAutoRetType {
template <typename U> using IntegralType = int8_t;
template <typename U> using AutoRetType = int8_t;
}  // namespace UnpackingAutoRetType
template <typename U, typename I>
vector<uint8_t> packMultiDimensionalInputs(I first, I last, const DynamicMdSpan<I>&, std::size_t) { return {first, last}; }
template <typename U, typename I>
vector<int8_t> unpackMultiDimensionalOutputs(I first, I last, const DynamicMdSpan<I>&, const std::vector<unsigned>&) { return {first, last}; }
}  // namespace Finn
