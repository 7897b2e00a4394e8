// What stands between the matrix products of a decoder layer, each in one pass over memory and summed in float32.

#include <cmath>

#include "kernels.h"

namespace {

// Fewer elements than this are done before a second thread has woken up.
constexpr int64_t WORTH_THREADS = 1 << 15;

inline int team(int64_t elements, int threads) { return elements < WORTH_THREADS ? 1 : threads; }

template <typename T>
void rms_norm(T* out, const T* x, const float* weight, int64_t rows, int64_t width, float eps, int threads) {
#pragma omp parallel for schedule(static) num_threads(team(rows * width, threads))
    for (int64_t row = 0; row < rows; row++) {
        const T* from = x + row * width;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < width; i++) sum += widen(from[i]) * widen(from[i]);
        const float scale = 1.0f / std::sqrt(sum / width + eps);
#pragma omp simd
        for (int64_t i = 0; i < width; i++) narrow(widen(from[i]) * scale * weight[i], out + row * width + i);
    }
}

// sum += x
template <typename T>
void add(T* sum, const T* x, int64_t count, int threads) {
#pragma omp parallel for simd schedule(static) num_threads(team(count, threads))
    for (int64_t i = 0; i < count; i++) narrow(widen(sum[i]) + widen(x[i]), sum + i);
}

// out [rows, width] = silu(gate) * up, from rows of gate and up end to end.
template <typename T>
void silu_gate(T* out, const T* joined, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for schedule(static) num_threads(team(rows * width, threads))
    for (int64_t row = 0; row < rows; row++) {
        const T *gate = joined + 2 * row * width, *up = gate + width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            const float g = widen(gate[i]), e = exp_negative(-std::fabs(g));
            narrow(g * (g < 0 ? e : 1.0f) / (1.0f + e) * widen(up[i]), out + row * width + i);
        }
    }
}

// Rotates the first `dim` elements of the first `heads` heads of each row, in place; their halves turn with each other.
template <typename T>
void rotate(T* x, const T* cosines, const T* sines, int64_t rows, int64_t row_stride, int64_t heads, int64_t head_stride,
            int64_t dim, int threads) {
    const int64_t half = dim / 2;
#pragma omp parallel for schedule(static) num_threads(team(rows * heads * dim, threads))
    for (int64_t row = 0; row < rows; row++) {
        const T *c = cosines + row * dim, *s = sines + row * dim;
        for (int64_t head = 0; head < heads; head++) {
            T *low = x + row * row_stride + head * head_stride, *high = low + half;
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                const float a = widen(low[i]), b = widen(high[i]);
                narrow(a * widen(c[i]) - b * widen(s[i]), low + i);
                narrow(b * widen(c[half + i]) + a * widen(s[half + i]), high + i);
            }
        }
    }
}

// Keys and values of new tokens to their slots in one layer of KV, [2, heads, slots, dim].
template <typename T>
void store(T* kv, const T* key, const T* value, const int64_t* slots, int64_t tokens, int64_t heads, int64_t num_slots,
           int64_t dim, int64_t token_stride, int64_t head_stride, int threads) {
#pragma omp parallel for schedule(static) num_threads(team(2 * tokens * heads * dim, threads))
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t head = 0; head < heads; head++) {
            const int64_t from = token * token_stride + head * head_stride;
            T* to = kv + (head * num_slots + slots[token]) * dim;
            std::memcpy(to, key + from, dim * sizeof(T));
            std::memcpy(to + heads * num_slots * dim, value + from, dim * sizeof(T));
        }
}

}  // namespace

#define BATON_ELEMENTWISE(SUFFIX, T)                                                                                  \
    extern "C" void rms_norm_##SUFFIX(T* out, const T* x, const float* weight, int64_t rows, int64_t width, float eps, \
                                      int threads) {                                                                  \
        rms_norm(out, x, weight, rows, width, eps, threads);                                                          \
    }                                                                                                                 \
    extern "C" void add_##SUFFIX(T* sum, const T* x, int64_t count, int threads) { add(sum, x, count, threads); }      \
    extern "C" void silu_gate_##SUFFIX(T* out, const T* joined, int64_t rows, int64_t width, int threads) {            \
        silu_gate(out, joined, rows, width, threads);                                                                 \
    }                                                                                                                 \
    extern "C" void rotate_##SUFFIX(T* x, const T* cosines, const T* sines, int64_t rows, int64_t row_stride,          \
                                    int64_t heads, int64_t head_stride, int64_t dim, int threads) {                   \
        rotate(x, cosines, sines, rows, row_stride, heads, head_stride, dim, threads);                                \
    }                                                                                                                 \
    extern "C" void store_##SUFFIX(T* kv, const T* key, const T* value, const int64_t* slots, int64_t tokens,          \
                                   int64_t heads, int64_t num_slots, int64_t dim, int64_t token_stride,               \
                                   int64_t head_stride, int threads) {                                                \
        store(kv, key, value, slots, tokens, heads, num_slots, dim, token_stride, head_stride, threads);              \
    }

BATON_ELEMENTWISE(bfloat16, bfloat16)
BATON_ELEMENTWISE(float32, float)
