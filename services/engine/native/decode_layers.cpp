// One token of each request through all decoder layers: what Python would call kernel by kernel, without Python between.
//
// A layer is hidden += out(attention(norm(hidden))), then hidden += down(silu_gate(norm(hidden))).

#include <vector>

#include "kernels.h"
#include "vectors.h"

namespace {

// Everything that the layers share.
template <typename T>
struct Step {
    T* hidden;  // [rows, width], taken and given
    const T *cosines, *sines;  // [rows, turned]
    const int64_t* slots;
    const int32_t* blocks;
    const int64_t *tables, *lengths;
    int64_t rows, width, inner, heads, kv_heads, dim, turned, num_blocks, block_size;
    int threads;
};

template <typename T>
struct Linear {
    const void* weight;  // of T, or of int8 where there is a scale
    const float* scale;
    const T* bias;
};

template <typename T>
struct Layer {
    const float* attention_norm;
    Linear<T> qkv, out;
    const float* mlp_norm;
    Linear<T> gate_up, down;
    T* kv;
    int64_t window;
    double attention_eps, mlp_eps, scale, softcap;
};

// The kernels of an element type under one name.
template <typename T>
struct Kernels;

#define BATON_BIND(SUFFIX, T)                                          \
    template <>                                                        \
    struct Kernels<T> {                                                \
        static constexpr auto rms_norm = rms_norm_##SUFFIX;            \
        static constexpr auto add = add_##SUFFIX;                      \
        static constexpr auto silu_gate = silu_gate_##SUFFIX;          \
        static constexpr auto rotate = rotate_##SUFFIX;                \
        static constexpr auto store = store_##SUFFIX;                  \
        static constexpr auto attention = decode_attention_##SUFFIX;   \
        static constexpr auto quantized = quantized_linear_##SUFFIX;   \
    }

BATON_BIND(bfloat16, bfloat16);
BATON_BIND(float32, float);

template <typename T>
void multiply(T* out, const T* x, const Linear<T>& by, int64_t rows, int64_t n, int64_t k, int threads) {
    if (by.scale) return Kernels<T>::quantized(out, x, static_cast<const int8_t*>(by.weight), by.scale, by.bias, rows, n, k, threads);
    if constexpr (sizeof(T) == 2) linear_bfloat16(out, x, static_cast<const T*>(by.weight), by.bias, rows, n, k, threads);
}

template <typename T>
void decode_layers(const Step<T>& s, const Layer<T>* layers, int64_t count) {
    using K = Kernels<T>;
    const int64_t row = (s.heads + 2 * s.kv_heads) * s.dim, group = s.heads / s.kv_heads;
    thread_local std::vector<T, Aligned<T>> normed, qkv, mixed, joined, gated, added;
    normed.resize(s.rows * s.width), qkv.resize(s.rows * row), mixed.resize(s.rows * s.heads * s.dim);
    joined.resize(s.rows * 2 * s.inner), gated.resize(s.rows * s.inner), added.resize(s.rows * s.width);
    for (const Layer<T>* layer = layers; layer < layers + count; layer++) {
        K::rms_norm(normed.data(), s.hidden, layer->attention_norm, s.rows, s.width, layer->attention_eps, s.threads);
        multiply(qkv.data(), normed.data(), layer->qkv, s.rows, row, s.width, s.threads);
        K::rotate(qkv.data(), s.cosines, s.sines, s.rows, row, s.heads + s.kv_heads, s.dim, s.turned, s.threads);
        const T* key = qkv.data() + s.heads * s.dim;
        K::store(layer->kv, key, key + s.kv_heads * s.dim, s.slots, s.rows, s.kv_heads, s.num_blocks * s.block_size, s.dim,
                 row, s.dim, s.threads);
        K::attention(mixed.data(), qkv.data(), layer->kv, s.blocks, s.tables, s.lengths, row, s.dim, s.rows, s.kv_heads,
                     group, s.dim, s.num_blocks, s.block_size, layer->window, layer->scale, layer->softcap, s.threads);
        multiply(added.data(), mixed.data(), layer->out, s.rows, s.width, s.heads * s.dim, s.threads);
        K::add(s.hidden, added.data(), s.rows * s.width, s.threads);
        K::rms_norm(normed.data(), s.hidden, layer->mlp_norm, s.rows, s.width, layer->mlp_eps, s.threads);
        multiply(joined.data(), normed.data(), layer->gate_up, s.rows, 2 * s.inner, s.width, s.threads);
        K::silu_gate(gated.data(), joined.data(), s.rows, s.inner, s.threads);
        multiply(added.data(), gated.data(), layer->down, s.rows, s.width, s.inner, s.threads);
        K::add(s.hidden, added.data(), s.rows * s.width, s.threads);
    }
}

}  // namespace

// `sizes` are rows … block_size of a Step.
#define BATON_DECODE_LAYERS(SUFFIX, T)                                                                               \
    extern "C" void decode_layers_##SUFFIX(T* hidden, const T* cosines, const T* sines, const int64_t* slots,        \
                                           const int32_t* blocks, const int64_t* tables, const int64_t* lengths,     \
                                           const int64_t* sizes, const void* layers, int64_t count, int threads) {   \
        decode_layers<T>({hidden, cosines, sines, slots, blocks, tables, lengths, sizes[0], sizes[1], sizes[2],      \
                          sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], sizes[8], threads},                      \
                         static_cast<const Layer<T>*>(layers), count);                                               \
    }

BATON_DECODE_LAYERS(bfloat16, bfloat16)
BATON_DECODE_LAYERS(float32, float)
