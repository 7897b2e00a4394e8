// The largest element of each row and where it first is: what greedy sampling asks of logits.
//
// Elements are compared as whole numbers in the order of what they mean, because those are compared a vector at a time
// and what is no number cannot hide among them.

#include <algorithm>
#include <limits>

#include "numbers.h"

namespace {

template <typename T>
struct Bits;
template <>
struct Bits<bfloat16> {
    using Whole = int16_t;
    static constexpr Whole INFINITE = 0x7f80;
};
template <>
struct Bits<float> {
    using Whole = int32_t;
    static constexpr Whole INFINITE = 0x7f800000;
};

template <typename T>
inline typename Bits<T>::Whole bits_of(const T& element) {
    typename Bits<T>::Whole bits;
    std::memcpy(&bits, &element, sizeof bits);
    return bits;
}

// Grows with the number; both zeros are 0.
template <typename T>
inline typename Bits<T>::Whole rank(const T& element) {
    using Whole = typename Bits<T>::Whole;
    const Whole bits = bits_of(element);
    const Whole ordered = bits ^ ((bits >> (8 * sizeof(Whole) - 1)) & std::numeric_limits<Whole>::max());
    return ordered == -1 ? 0 : ordered;
}

template <typename T>
int64_t find_first(const T* row, int64_t width, typename Bits<T>::Whole wanted) {
    constexpr int64_t AT_ONCE = 512;
    int64_t first = 0;
    for (; first + AT_ONCE <= width; first += AT_ONCE) {
        bool is_there = false;
        for (int64_t i = first; i < first + AT_ONCE; i++) is_there |= rank(row[i]) == wanted;
        if (is_there) break;
    }
    while (rank(row[first]) != wanted) first++;
    return first;
}

// `values` [rows] as float32, no number for a row with something that is none; `places` [rows].
template <typename T>
void find_largest(float* values, int64_t* places, const T* x, int64_t rows, int64_t width, int threads) {
    using Whole = typename Bits<T>::Whole;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r++) {
        const T* row = x + r * width;
        Whole largest = std::numeric_limits<Whole>::min(), farthest = 0;
        for (int64_t i = 0; i < width; i++) {
            largest = std::max(largest, rank(row[i]));
            farthest = std::max<Whole>(farthest, bits_of(row[i]) & std::numeric_limits<Whole>::max());
        }
        places[r] = find_first(row, width, largest);
        const bool is_number = farthest <= Bits<T>::INFINITE;
        values[r] = is_number ? widen(row[places[r]]) : std::numeric_limits<float>::quiet_NaN();
    }
}

}  // namespace

extern "C" void largest_bfloat16(float* values, int64_t* places, const bfloat16* x, int64_t rows, int64_t width, int threads) {
    find_largest(values, places, x, rows, width, threads);
}

extern "C" void largest_float32(float* values, int64_t* places, const float* x, int64_t rows, int64_t width, int threads) {
    find_largest(values, places, x, rows, width, threads);
}
