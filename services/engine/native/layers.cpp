// The tokens of a step through all decoder layers: what Python would call kernel by kernel, without Python between, and
// with less written and read again.
//
// A layer is hidden += out(attention(norm(hidden))), then hidden += down(silu(gate(norm(hidden))) * up(norm(hidden))).

#include <vector>

#include "kernels.h"
#include "vectors.h"

namespace {

// Everything that the layers share. The first `decodes` of `items` requests have one row each; `first_rows` has one more
// entry than there are requests.
template <typename T>
struct Step {
    T* hidden;  // [rows, width], taken and given
    const T *cosines, *sines;  // [rows, turned]
    const int64_t* slots;
    const int32_t* blocks;
    const int64_t *tables, *lengths, *first_rows;
    int64_t rows, items, decodes, width, inner, heads, kv_heads, dim, turned, num_blocks, block_size;
    int threads;

    int64_t qkv_width() const { return (heads + 2 * kv_heads) * dim; }
    int64_t mixed_width() const { return heads * dim; }
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

struct Norm {
    const float* weight = nullptr;
    double eps = 0;
};

// The kernels of an element type under one name.
template <typename T>
struct Kernels;

#define BATON_BIND(SUFFIX, T)                                        \
    template <>                                                      \
    struct Kernels<T> {                                              \
        static constexpr auto place = place_##SUFFIX;                \
        static constexpr auto attention = decode_attention_##SUFFIX; \
        static constexpr auto quantized = quantized_linear_##SUFFIX; \
    }

BATON_BIND(bfloat16, bfloat16);
BATON_BIND(float32, float);

template <typename T>
void multiply(T* out, const T* x, const Linear<T>& by, const Norm& norm, int64_t rows, int64_t n, int64_t k, Into into,
              int threads) {
    if (by.scale)
        return Kernels<T>::quantized(out, x, static_cast<const int8_t*>(by.weight), by.scale, by.bias, norm.weight,
                                     norm.eps, rows, n, k, into, threads);
    if constexpr (sizeof(T) == 2)
        linear_bfloat16(out, x, static_cast<const T*>(by.weight), by.bias, norm.weight, norm.eps, rows, n, k, into, threads);
}

template <typename T>
void attend(T* mixed, const T* qkv, const Step<T>& s, const Layer<T>& layer) {
    const int64_t group = s.heads / s.kv_heads;
    if (s.decodes)
        Kernels<T>::attention(mixed, qkv, layer.kv, s.blocks, s.tables, s.lengths, s.qkv_width(), s.dim, s.decodes,
                              s.kv_heads, group, s.dim, s.num_blocks, s.block_size, layer.window, layer.scale,
                              layer.softcap, s.threads);
    if constexpr (sizeof(T) == 2)
        for (int64_t i = s.decodes; i < s.items; i++) {
            const int64_t first = s.first_rows[i], tokens = s.first_rows[i + 1] - first;
            prompt_attention_bfloat16(mixed + first * s.mixed_width(), qkv + first * s.qkv_width(), layer.kv,
                                      s.blocks + s.tables[i], s.qkv_width(), s.dim, tokens, s.lengths[i], s.kv_heads,
                                      group, s.dim, s.num_blocks, s.block_size, layer.window, layer.scale,
                                      layer.softcap, s.threads);
        }
}

template <typename T>
void run_layers(const Step<T>& s, const Layer<T>* layers, int64_t count) {
    thread_local std::vector<T, Aligned<T>> qkv, mixed, gated;
    qkv.resize(s.rows * s.qkv_width()), mixed.resize(s.rows * s.mixed_width()), gated.resize(s.rows * s.inner);
    for (const Layer<T>* layer = layers; layer < layers + count; layer++) {
        const Norm before{layer->attention_norm, layer->attention_eps}, between{layer->mlp_norm, layer->mlp_eps};
        multiply(qkv.data(), s.hidden, layer->qkv, before, s.rows, s.qkv_width(), s.width, Into::STORED, s.threads);
        Kernels<T>::place(qkv.data(), layer->kv, s.cosines, s.sines, s.slots, s.rows, s.heads, s.kv_heads, s.dim,
                          s.turned, s.num_blocks * s.block_size, s.threads);
        attend(mixed.data(), qkv.data(), s, *layer);
        multiply(s.hidden, mixed.data(), layer->out, {}, s.rows, s.width, s.mixed_width(), Into::ADDED, s.threads);
        multiply(gated.data(), s.hidden, layer->gate_up, between, s.rows, 2 * s.inner, s.width, Into::GATED, s.threads);
        multiply(s.hidden, gated.data(), layer->down, {}, s.rows, s.width, s.inner, Into::ADDED, s.threads);
    }
}

}  // namespace

// `sizes` are rows … block_size of a Step. Requests of several rows: bfloat16, where `can_multiply`, dim 64 or 128.
#define BATON_RUN_LAYERS(SUFFIX, T)                                                                                 \
    extern "C" void run_layers_##SUFFIX(T* hidden, const T* cosines, const T* sines, const int64_t* slots,          \
                                        const int32_t* blocks, const int64_t* tables, const int64_t* lengths,       \
                                        const int64_t* first_rows, const int64_t* sizes, const void* layers,        \
                                        int64_t count, int threads) {                                               \
        run_layers<T>({hidden,   cosines,  sines,    slots,    blocks,   tables,   lengths,  first_rows, sizes[0],  \
                       sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], sizes[8],   sizes[9],  \
                       sizes[10], threads},                                                                         \
                      static_cast<const Layer<T>*>(layers), count);                                                 \
    }

BATON_RUN_LAYERS(bfloat16, bfloat16)
BATON_RUN_LAYERS(float32, float)
