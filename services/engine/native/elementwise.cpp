// What stands between the matrix products of a decoder layer, each in one pass over memory and summed in float32.

#include <cmath>

#include "kernels.h"

namespace {

// Fewer elements than this are done before a second thread has woken up.
constexpr int64_t WORTH_THREADS = 1 << 15;

inline int team(int64_t elements, int threads) { return elements < WORTH_THREADS ? 1 : threads; }

// Not inlined: sums may be reordered where it is, and a row's bits must not depend on who called.
template <typename T>
__attribute__((noinline)) void norm_row(T* out, const T* x, const float* weight, int64_t width, float eps) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) sum += widen(x[i]) * widen(x[i]);
    const float scale = 1.0f / std::sqrt(sum / width + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; i++) narrow(widen(x[i]) * scale * weight[i], out + i);
}

template <typename T>
void rms_norm(T* out, const T* x, const float* weight, int64_t rows, int64_t width, float eps, int threads) {
#pragma omp parallel for schedule(static) num_threads(team(rows * width, threads))
    for (int64_t row = 0; row < rows; row++) norm_row(out + row * width, x + row * width, weight, width, eps);
}

// out = silu(gate) * up, from sixteen of the gate and sixteen of up in turn.
template <typename T>
void silu_gate(T* out, const T* joined, int64_t count, int threads) {
#pragma omp parallel for schedule(static) num_threads(team(count, threads))
    for (int64_t first = 0; first < count; first += 16) {
        const T *gate = joined + 2 * first, *up = gate + 16;
#pragma omp simd
        for (int64_t i = 0; i < 16; i++) {
            const float g = widen(gate[i]), e = exp_negative(-std::fabs(g));
            narrow(g * (g < 0 ? e : 1.0f) / (1.0f + e) * widen(up[i]), out + first + i);
        }
    }
}

// Rotates the first `dim` elements of heads, in place; their halves turn with each other.
template <typename T>
void rotate_row(T* x, const T* cosines, const T* sines, int64_t heads, int64_t head_stride, int64_t dim) {
    const int64_t half = dim / 2;
    for (int64_t head = 0; head < heads; head++) {
        T *low = x + head * head_stride, *high = low + half;
#pragma omp simd
        for (int64_t i = 0; i < half; i++) {
            const float a = widen(low[i]), b = widen(high[i]);
            narrow(a * widen(cosines[i]) - b * widen(sines[i]), low + i);
            narrow(b * widen(cosines[half + i]) + a * widen(sines[half + i]), high + i);
        }
    }
}

template <typename T>
void rotate(T* x, const T* cosines, const T* sines, int64_t rows, int64_t row_stride, int64_t heads, int64_t head_stride,
            int64_t dim, int threads) {
#pragma omp parallel for schedule(static) num_threads(team(rows * heads * dim, threads))
    for (int64_t row = 0; row < rows; row++)
        rotate_row(x + row * row_stride, cosines + row * dim, sines + row * dim, heads, head_stride, dim);
}

// Keys and values of a token, `stride` from head to head, to its slot in one layer of KV, [2, heads, slots, dim].
template <typename T>
void store_row(T* kv, const T* key, const T* value, int64_t slot, int64_t heads, int64_t num_slots, int64_t dim,
               int64_t stride) {
    for (int64_t head = 0; head < heads; head++) {
        T* to = kv + (head * num_slots + slot) * dim;
        std::memcpy(to, key + head * stride, dim * sizeof(T));
        std::memcpy(to + heads * num_slots * dim, value + head * stride, dim * sizeof(T));
    }
}

template <typename T>
void store(T* kv, const T* key, const T* value, const int64_t* slots, int64_t tokens, int64_t heads, int64_t num_slots,
           int64_t dim, int64_t token_stride, int64_t head_stride, int threads) {
#pragma omp parallel for schedule(static) num_threads(team(2 * tokens * heads * dim, threads))
    for (int64_t token = 0; token < tokens; token++)
        store_row(kv, key + token * token_stride, value + token * token_stride, slots[token], heads, num_slots, dim,
                  head_stride);
}

// Rows of queries, keys and values, [heads + 2 * kv_heads, dim]: turns queries in place and keys on their way to KV.
template <typename T>
void place(T* qkv, T* kv, const T* cosines, const T* sines, const int64_t* slots, int64_t rows, int64_t heads,
           int64_t kv_heads, int64_t dim, int64_t turned, int64_t num_slots, int threads) {
    const int64_t size = (heads + 2 * kv_heads) * dim;
#pragma omp parallel for schedule(static) num_threads(team(rows * size, threads))
    for (int64_t row = 0; row < rows; row++) {
        T *query = qkv + row * size, *key = query + heads * dim;
        rotate_row(query, cosines + row * turned, sines + row * turned, heads + kv_heads, dim, turned);
        store_row(kv, key, key + kv_heads * dim, slots[row], kv_heads, num_slots, dim, dim);
    }
}

}  // namespace

#define BATON_ELEMENTWISE(SUFFIX, T)                                                                                  \
    extern "C" void norm_row_##SUFFIX(T* out, const T* x, const float* weight, int64_t width, float eps) {            \
        norm_row(out, x, weight, width, eps);                                                                         \
    }                                                                                                                 \
    extern "C" void rms_norm_##SUFFIX(T* out, const T* x, const float* weight, int64_t rows, int64_t width, float eps, \
                                      int threads) {                                                                  \
        rms_norm(out, x, weight, rows, width, eps, threads);                                                          \
    }                                                                                                                 \
    extern "C" void silu_gate_##SUFFIX(T* out, const T* joined, int64_t count, int threads) {                         \
        silu_gate(out, joined, count, threads);                                                                       \
    }                                                                                                                 \
    extern "C" void rotate_##SUFFIX(T* x, const T* cosines, const T* sines, int64_t rows, int64_t row_stride,          \
                                    int64_t heads, int64_t head_stride, int64_t dim, int threads) {                   \
        rotate(x, cosines, sines, rows, row_stride, heads, head_stride, dim, threads);                                \
    }                                                                                                                 \
    extern "C" void store_##SUFFIX(T* kv, const T* key, const T* value, const int64_t* slots, int64_t tokens,          \
                                   int64_t heads, int64_t num_slots, int64_t dim, int64_t token_stride,               \
                                   int64_t head_stride, int threads) {                                                \
        store(kv, key, value, slots, tokens, heads, num_slots, dim, token_stride, head_stride, threads);              \
    }                                                                                                                 \
    extern "C" void place_##SUFFIX(T* qkv, T* kv, const T* cosines, const T* sines, const int64_t* slots,             \
                                   int64_t rows, int64_t heads, int64_t kv_heads, int64_t dim, int64_t turned,        \
                                   int64_t num_slots, int threads) {                                                  \
        place(qkv, kv, cosines, sines, slots, rows, heads, kv_heads, dim, turned, num_slots, threads);                \
    }

BATON_ELEMENTWISE(bfloat16, bfloat16)
BATON_ELEMENTWISE(float32, float)
