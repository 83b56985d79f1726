// One step of generation on a CPU: some tokens of many sequences, through all layers, in one call. Activations are
// float32, weights are of several kinds (generation_products.h), keys and values float32 or bf16, and these are float32
// once they are in registers.
//
// Every row of the step is computed by the same operations in the same order, however many rows there are, however they
// are divided among threads, and wherever a prompt was cut: an answer does not depend on its neighbours, bit for bit.
//
// Keys lie in blocks of kBlock tokens, token beside token; values row after row. Where bf16 is multiplied in pairs, two
// inputs of a key lie side by side, and two tokens of a value.

#include <omp.h>
#include <sched.h>

#include <atomic>

#include "generation_products.h"

namespace {

constexpr int kBlock = 16;  // tokens of a block of keys and values
#ifdef __AVX512F__
constexpr int kHeads = 4;  // that read the same keys together
#else
constexpr int kHeads = 2;
#endif

struct Layer {
    Matrix qkv, out, gate, up, down;  // of a mixture: gate, up and down are those of the shared experts
    const float *before_attention, *before_mlp, *q_norm, *k_norm;
    const float *router, *router_bias;  // (experts, size), (experts); null where there are none
    const Matrix* experts;              // gate, up and down of each
};

}  // namespace

struct Problem {
    int64_t rows, outputs, threads, layers, size, heads, kv_heads, head_dim, blocks, table_size;
    int64_t experts, top_k, normalised, wide_embedding, wide_cache;
    float eps, scale;
    const Layer* layer;
    const Matrix* head;
    const void* embedding;    // (V, size), float32 if wide_embedding, else bf16
    const float *norm, *cos, *sin;  // (size); (context, head_dim / 2)
    const int32_t *tokens, *positions, *sequence, *tables, *wanted;  // of rows; tables (sequences, table_size); of outputs
    void *keys, *values;      // (layers, blocks, kv_heads, head_dim, kBlock), (…, kBlock, head_dim); bf16 unless wide_cache
    float *x, *h, *wide, *inner, *logits;  // (rows, size), (rows, widest), …, (outputs, width of head)
    float *gathered, *weights;  // of experts: (rows top_k, wide_row), (rows top_k)
    int32_t *chosen, *order, *ends;  // (rows top_k) twice, (experts)
    float* scores;            // (threads, kHeads or more, table_size kBlock)
    int64_t wide_row, inner_row;  // entries of a row
};

namespace {

// All threads wait for the last one. They spin: what is between two barriers takes microseconds.
class Barrier {
    std::atomic<int> waiting_{0}, turn_{0};

  public:
    void wait(int threads) {
        const int turn = turn_.load(std::memory_order_acquire);
        if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            waiting_.store(0, std::memory_order_relaxed);
            turn_.store(turn + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; turn_.load(std::memory_order_acquire) == turn; spins++)
            if (spins < 300)
                __builtin_ia32_pause();
            else
                sched_yield();  // another program may have the core that the last thread needs
    }
};

// ---- between the products -------------------------------------------------------------------------------------------

void normalise(const float* x, const float* weight, float eps, int64_t size, float* out) {
    Vec squares{};
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) squares += load(x + i) * load(x + i);
    float sum = fold(squares, [](float a, float b) { return a + b; });
    for (; i < size; i++) sum += x[i] * x[i];
    const float factor = 1.0f / std::sqrt(sum / size + eps);
    for (i = 0; i < size; i++) out[i] = x[i] * factor * weight[i];
}

void rotate(float* x, const float* cos, const float* sin, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        const float first = x[i], second = x[i + half];
        x[i] = first * cos[i] - second * sin[i];
        x[i + half] = second * cos[i] + first * sin[i];
    }
}

class Step {
    const Problem& p_;
    Barrier& barrier_;
    const int64_t thread_, threads_;

    Range mine(int64_t count) const { return share(count, thread_, threads_); }
    void wait() { barrier_.wait(threads_); }
    int64_t q_size() const { return p_.heads * p_.head_dim; }
    int64_t block_size() const { return p_.kv_heads * p_.head_dim * kBlock; }

    // Rows times a matrix, its panels divided among the threads.
    void multiply_mine(const Matrix& a, const float* x, int64_t x_row, int64_t rows, float* out, int64_t out_row,
                       Mode mode) {
        multiply(a, x, x_row, rows, mine(a.panels()), out, out_row, mode);
    }

    void embed() {
        const Range rows = mine(p_.rows);
        for (int64_t i = rows.begin; i < rows.end; i++)
            for (int64_t c = 0; c < p_.size; c++) {
                const int64_t at = p_.tokens[i] * p_.size + c;
                uint32_t bits = p_.wide_embedding ? static_cast<const uint32_t*>(p_.embedding)[at]
                                                  : uint32_t(static_cast<const bf16*>(p_.embedding)[at]) << 16;
                std::memcpy(p_.x + i * p_.size + c, &bits, sizeof bits);
            }
    }

    void normalise_mine(const float* weight) {
        const Range rows = mine(p_.rows);
        for (int64_t i = rows.begin; i < rows.end; i++)
            normalise(p_.x + i * p_.size, weight, p_.eps, p_.size, p_.h + i * p_.wide_row);
    }

    // Rotates queries and keys where they lie, and writes keys and values into their blocks.
    void remember(const Layer& layer, int64_t index) {
        const int64_t dim = p_.head_dim;
        const Range all_heads = mine(p_.rows * (p_.heads + 2 * p_.kv_heads));
        for (int64_t task = all_heads.begin; task < all_heads.end; task++) {
            const int64_t row = task / (p_.heads + 2 * p_.kv_heads), head = task % (p_.heads + 2 * p_.kv_heads);
            float* x = p_.wide + row * p_.wide_row + head * dim;
            const int64_t position = p_.positions[row];
            if (head < p_.heads + p_.kv_heads) {
                const float* norm = head < p_.heads ? layer.q_norm : layer.k_norm;
                if (norm) normalise(x, norm, p_.eps, dim, x);
                rotate(x, p_.cos + position * (dim / 2), p_.sin + position * (dim / 2), dim / 2);
            }
            if (head < p_.heads) continue;
            const int64_t kv_head = (head - p_.heads) % p_.kv_heads;
            const int64_t block = p_.tables[p_.sequence[row] * p_.table_size + position / kBlock];
            const int64_t at = (index * p_.blocks + block) * block_size() + kv_head * dim * kBlock;
            const bool key = head < p_.heads + p_.kv_heads;
            p_.wide_cache ? keep<float>(x, key, at, position % kBlock) : keep<bf16>(x, key, at, position % kBlock);
        }
    }

    // A key or a value, at its place in the block that begins at `at`.
    template <class T>
    void keep(const float* x, bool key, int64_t at, int64_t place) {
        if constexpr (std::is_same_v<T, bf16> && kPairs) {
            const int64_t across = key ? kBlock : p_.head_dim;
            T* to = static_cast<T*>(key ? p_.keys : p_.values) + at + (key ? 2 * place : place / 2 * 2 * across + place % 2);
            for (int64_t d = 0; d < p_.head_dim; d += kLanes) {
                T entries[kLanes];
                store(entries, load(x + d));
                for (int64_t i = d; i < d + kLanes; i++) to[key ? i / 2 * 2 * across + i % 2 : 2 * i] = entries[i - d];
            }
            return;
        }
        if (!key) {
            T* to = static_cast<T*>(p_.values) + at + place * p_.head_dim;
            for (int64_t d = 0; d < p_.head_dim; d += kLanes) store(to + d, load(x + d));
            return;
        }
        for (int64_t d = 0; d < p_.head_dim; d += kLanes) {
            T entries[kLanes];
            store(entries, load(x + d));
            for (int64_t i = 0; i < kLanes; i++) static_cast<T*>(p_.keys)[at + (d + i) * kBlock + place] = entries[i];
        }
    }

    // HEADS queries of a row, from `head` on, that read the same head of keys.
    template <int HEADS, class T>
    void attend_heads(int64_t row, int64_t head, const T* keys, const T* values, float* scores) {
        const int64_t dim = p_.head_dim, length = p_.positions[row] + 1, columns = p_.table_size * kBlock;
        const int64_t padded = (length + kBlock - 1) / kBlock * kBlock;
        const int32_t* table = p_.tables + p_.sequence[row] * p_.table_size;
        const float* queries = p_.wide + row * p_.wide_row + head * dim;
        for (int64_t first = 0; first < padded; first += kBlock)
            for (int part = 0; part < kBlock; part += kLanes) {
                // Blocks lie anywhere: the next keys, and the values that are read after them, are fetched by name.
                const int64_t block = table[first / kBlock], next = table[std::min(first + kBlock, padded - 1) / kBlock];
                const T* from = keys + block * block_size() + part;
                const T *soon = keys + next * block_size() + part, *later = values + block * block_size() + part;
                Vec even[HEADS] = {}, odd[HEADS] = {};
                for (int64_t d = 0; d < dim; d += 2) {
                    const Vec one = load(from + d * kBlock), other = load(from + (d + 1) * kBlock);
                    for (int64_t line = d; line < d + 2; line += 64 / (kBlock * sizeof(T))) {
                        __builtin_prefetch(soon + line * kBlock);
                        __builtin_prefetch(later + line * kBlock, 0, 2);
                    }
                    for (int g = 0; g < HEADS; g++) {
                        even[g] += all(queries[g * dim + d]) * one;
                        odd[g] += all(queries[g * dim + d + 1]) * other;
                    }
                }
                for (int g = 0; g < HEADS; g++)
                    store(scores + g * columns + first + part, (even[g] + odd[g]) * (p_.scale * kLog2e));
            }
        float factors[HEADS];
        for (int g = 0; g < HEADS; g++) factors[g] = soften(scores + g * columns, length, padded);
        float* out = p_.h + row * p_.wide_row + head * dim;
        constexpr int kWide = kLanes == 16 && HEADS == 4 ? 4 : 2;  // vectors that are added up at a time
        for (int64_t d = 0; d < dim; d += kWide * kLanes) {
            const int64_t vectors = std::min<int64_t>(kWide, (dim - d) / kLanes);
            Vec total[HEADS][kWide] = {};
            for (int64_t j = 0; j < length; j++) {
                const T* from = values + table[j / kBlock] * block_size() + j % kBlock * dim + d;
                for (int v = 0; v < kWide; v++) {
                    if (v >= vectors) break;
                    const Vec value = load(from + v * kLanes);
                    for (int g = 0; g < HEADS; g++) total[g][v] += all(scores[g * columns + j]) * value;
                }
            }
            for (int g = 0; g < HEADS; g++)
                for (int64_t v = 0; v < vectors; v++) store(out + g * dim + d + v * kLanes, total[g][v] * factors[g]);
        }
    }

    // Scores, in units of log 2, to the powers of the softmax, in their place, perhaps rounded; one by their sum.
    template <bool ROUND = false>
    static float soften(float* scores, int64_t length, int64_t padded) {
        for (int64_t j = length; j < padded; j++) scores[j] = -1e30f;
        Vec most = all(-1e30f), sum{};
        for (int64_t j = 0; j < padded; j += kLanes) most = larger(most, load(scores + j));
        const float top = fold(most, [](float a, float b) { return std::max(a, b); });
        for (int64_t j = 0; j < padded; j += kLanes) {
            Vec e = exp2(load(scores + j) - top);
            if constexpr (ROUND) {
                bf16* to = reinterpret_cast<bf16*>(scores) + j;  // never beyond what was read
                store(to, e), e = load(to);
            } else
                store(scores + j, e);
            sum += e;
        }
        return 1.0f / fold(sum, [](float a, float b) { return a + b; });
    }

#ifdef __AVX512BF16__
    // The same in bf16: queries and the powers of the softmax are rounded, and meet keys and values in pairs.
    template <int HEADS>
    void attend_heads(int64_t row, int64_t head, const bf16* keys, const bf16* values, float* scores) {
        const int64_t dim = p_.head_dim, length = p_.positions[row] + 1, columns = p_.table_size * kBlock;
        const int64_t padded = (length + kBlock - 1) / kBlock * kBlock;
        const int32_t* table = p_.tables + p_.sequence[row] * p_.table_size;
        met_inputs.resize(std::max<size_t>(met_inputs.size(), HEADS * dim / 2));
        uint32_t* queries = met_inputs.data();
        BfloatPairs::meet(p_.wide + row * p_.wide_row + head * dim, HEADS * dim, queries);
        for (int64_t first = 0; first < padded; first += kBlock) {
            const int64_t block = table[first / kBlock], next = table[std::min(first + kBlock, padded - 1) / kBlock];
            const auto* from = reinterpret_cast<const uint32_t*>(keys + block * block_size());
            const auto* soon = reinterpret_cast<const uint32_t*>(keys + next * block_size());
            const auto* later = reinterpret_cast<const uint32_t*>(values + block * block_size());
            Vec total[HEADS][4] = {};  // several sums, because each waits for the one before it
            for (int64_t d = 0; d < dim / 2; d += 4)
                for (int i = 0; i < 4; i++) {
                    const auto pairs = BfloatPairs::read(from + (d + i) * kBlock);
                    __builtin_prefetch(soon + (d + i) * kBlock);
                    __builtin_prefetch(later + (d + i) * kBlock, 0, 2);
                    for (int g = 0; g < HEADS; g++)
                        total[g][i] = BfloatPairs::add(total[g][i], queries[g * dim / 2 + d + i], pairs);
                }
            for (int g = 0; g < HEADS; g++)
                store(scores + g * columns + first,
                      ((total[g][0] + total[g][1]) + (total[g][2] + total[g][3])) * (p_.scale * kLog2e));
        }
        float factors[HEADS];
        const uint32_t* powers[HEADS];
        for (int g = 0; g < HEADS; g++) {
            factors[g] = soften<true>(scores + g * columns, length, padded);
            powers[g] = reinterpret_cast<const uint32_t*>(scores + g * columns);
        }
        float* out = p_.h + row * p_.wide_row + head * dim;
        constexpr int kWide = 4;  // vectors that are added up at a time
        for (int64_t d = 0; d < dim; d += kWide * kLanes) {
            const int64_t vectors = std::min<int64_t>(kWide, (dim - d) / kLanes);
            Vec total[HEADS][kWide] = {};
            for (int64_t j = 0; j < length; j += 2) {
                const bf16* place = values + table[j / kBlock] * block_size() + j % kBlock * dim + 2 * d;
                const auto* from = reinterpret_cast<const uint32_t*>(place);
                // What lies behind the last token may be anything, even no number.
                const uint32_t there = j + 1 < length ? ~0u : 0xffffu;
                for (int v = 0; v < kWide; v++) {
                    if (v >= vectors) break;
                    const auto pairs = (__m512bh)_mm512_and_si512(_mm512_loadu_si512(from + v * kLanes), _mm512_set1_epi32(there));
                    for (int g = 0; g < HEADS; g++) total[g][v] = BfloatPairs::add(total[g][v], powers[g][j / 2], pairs);
                }
            }
            for (int g = 0; g < HEADS; g++)
                for (int64_t v = 0; v < vectors; v++) store(out + g * dim + d + v * kLanes, total[g][v] * factors[g]);
        }
    }
#endif

    // Every query of a row that reads this head of keys.
    template <class T>
    void attend(int64_t row, int64_t kv_head, int64_t index) {
        const int64_t group = p_.heads / p_.kv_heads;
        const int64_t base = index * p_.blocks * block_size() + kv_head * p_.head_dim * kBlock;
        const T *keys = static_cast<const T*>(p_.keys) + base, *values = static_cast<const T*>(p_.values) + base;
        float* scores = p_.scores + thread_ * kHeads * p_.table_size * kBlock;
        for (int64_t g = 0; g < group;) {
            const int64_t rest = group - g, head = kv_head * group + g;
            if (kHeads == 4 && rest >= 4)
                attend_heads<kHeads>(row, head, keys, values, scores), g += 4;
            else if (rest >= 2)
                attend_heads<2>(row, head, keys, values, scores), g += 2;
            else
                attend_heads<1>(row, head, keys, values, scores), g += 1;
        }
    }

    void attend_mine(int64_t index) {
        const Range tasks = mine(p_.rows * p_.kv_heads);
        for (int64_t task = tasks.begin; task < tasks.end; task++)
            p_.wide_cache ? attend<float>(task / p_.kv_heads, task % p_.kv_heads, index)
                          : attend<bf16>(task / p_.kv_heads, task % p_.kv_heads, index);
    }

    // ---- mixtures of experts ----------------------------------------------------------------------------------------

    void route(const Layer& layer, int64_t row) {
        const float* x = p_.h + row * p_.wide_row;
        float* probabilities = p_.inner + row * p_.inner_row;
        float most = -1e30f, sum = 0, kept = 0;
        for (int64_t e = 0; e < p_.experts; e++) {
            Vec total{};
            const float* w = layer.router + e * p_.size;
            int64_t c = 0;
            for (; c + kLanes <= p_.size; c += kLanes) total += load(x + c) * load(w + c);
            float logit = fold(total, [](float a, float b) { return a + b; });
            for (; c < p_.size; c++) logit += x[c] * w[c];
            probabilities[e] = logit, most = std::max(most, logit);
        }
        for (int64_t e = 0; e < p_.experts; e++) sum += probabilities[e] = std::exp(probabilities[e] - most);
        int32_t* chosen = p_.chosen + row * p_.top_k;
        float* weights = p_.weights + row * p_.top_k;
        for (int64_t k = 0; k < p_.top_k; k++) {
            float best = -1e30f;
            chosen[k] = 0;
            for (int64_t e = 0; e < p_.experts; e++) {
                const float preference = probabilities[e] / sum + (layer.router_bias ? layer.router_bias[e] : 0);
                if (preference > best && std::find(chosen, chosen + k, e) == chosen + k) best = preference, chosen[k] = e;
            }
            kept += weights[k] = probabilities[chosen[k]] / sum;
        }
        if (p_.normalised)
            for (int64_t k = 0; k < p_.top_k; k++) weights[k] /= std::max(kept, 1e-12f);
    }

    // Sorts the pairs of row and expert by expert: order, and the end of each expert.
    void sort_pairs() {
        std::fill(p_.ends, p_.ends + p_.experts, 0);
        const int64_t pairs = p_.rows * p_.top_k;
        for (int64_t i = 0; i < pairs; i++) p_.ends[p_.chosen[i]]++;
        for (int64_t e = 1; e < p_.experts; e++) p_.ends[e] += p_.ends[e - 1];
        for (int64_t i = pairs; i-- > 0;) p_.order[i] = --p_.ends[p_.chosen[i]];  // its place
        for (int64_t e = 0; e < p_.experts; e++) p_.ends[e] = e + 1 < p_.experts ? p_.ends[e + 1] : pairs;
    }

    // Matrix `which` (0 gate, 1 up, 2 down) of every expert that has rows, all panels divided among the threads.
    void multiply_experts(const Layer& layer, int which, const float* x, int64_t x_row, float* out, int64_t out_row,
                          Mode mode) {
        int64_t total = 0, first = 0;
        for (int64_t e = 0; e < p_.experts; e++)
            if (rows_of(e)) total += layer.experts[3 * e + which].panels();
        const Range all_mine = mine(total);
        for (int64_t e = 0; e < p_.experts; e++) {
            if (!rows_of(e)) continue;
            const Matrix& a = layer.experts[3 * e + which];
            const int64_t begin = std::max(all_mine.begin, first), end = std::min(all_mine.end, first + a.panels());
            const int64_t row = p_.ends[e] - rows_of(e);
            if (begin < end)
                multiply(a, x + row * x_row, x_row, rows_of(e), {begin - first, end - first}, out + row * out_row, out_row,
                         mode);
            first += a.panels();
        }
    }
    int64_t rows_of(int64_t e) const { return p_.ends[e] - (e ? p_.ends[e - 1] : 0); }

    void mix(const Layer& layer) {
        const Range rows = mine(p_.rows);
        for (int64_t i = rows.begin; i < rows.end; i++) route(layer, i);
        wait();
        if (thread_ == 0) sort_pairs();
        wait();
        for (int64_t i = rows.begin * p_.top_k; i < rows.end * p_.top_k; i++)
            std::memcpy(p_.gathered + p_.order[i] * p_.wide_row, p_.h + i / p_.top_k * p_.wide_row, p_.size * sizeof(float));
        wait();
        multiply_experts(layer, 0, p_.gathered, p_.wide_row, p_.inner, p_.inner_row, kPut);
        multiply_experts(layer, 1, p_.gathered, p_.wide_row, p_.inner, p_.inner_row, kGate);
        wait();
        multiply_experts(layer, 2, p_.inner, p_.inner_row, p_.wide, p_.wide_row, kPut);
        wait();
        for (int64_t i = rows.begin; i < rows.end; i++)
            for (int64_t k = 0; k < p_.top_k; k++) {
                const float weight = p_.weights[i * p_.top_k + k];
                const float* from = p_.wide + p_.order[i * p_.top_k + k] * p_.wide_row;
                for (int64_t c = 0; c < p_.size; c++) p_.x[i * p_.size + c] += weight * from[c];
            }
        wait();
    }

    void feed_forward(const Layer& layer) {
        multiply_mine(layer.gate, p_.h, p_.wide_row, p_.rows, p_.inner, p_.inner_row, kPut);
        multiply_mine(layer.up, p_.h, p_.wide_row, p_.rows, p_.inner, p_.inner_row, kGate);
        wait();
        multiply_mine(layer.down, p_.inner, p_.inner_row, p_.rows, p_.x, p_.size, kAdd);
        wait();
    }

    void project() {
        const Range rows = mine(p_.outputs);
        for (int64_t i = rows.begin; i < rows.end; i++)
            normalise(p_.x + p_.wanted[i] * p_.size, p_.norm, p_.eps, p_.size, p_.h + i * p_.wide_row);
        wait();
        multiply_mine(*p_.head, p_.h, p_.wide_row, p_.outputs, p_.logits, p_.head->width(), kPut);
    }

  public:
    Step(const Problem& p, Barrier& barrier)  // OpenMP may give fewer threads than were asked for
        : p_(p), barrier_(barrier), thread_(omp_get_thread_num()), threads_(omp_get_num_threads()) {}

    void run() {
        embed();
        for (int64_t i = 0; i < p_.layers; i++) {
            const Layer& layer = p_.layer[i];
            normalise_mine(layer.before_attention);
            wait();
            multiply_mine(layer.qkv, p_.h, p_.wide_row, p_.rows, p_.wide, p_.wide_row, kPut);
            wait();
            remember(layer, i);
            wait();
            attend_mine(i);
            wait();
            multiply_mine(layer.out, p_.h, p_.wide_row, p_.rows, p_.x, p_.size, kAdd);
            wait();
            normalise_mine(layer.before_mlp);
            wait();
            if (layer.router) mix(layer);
            if (layer.gate.weight) feed_forward(layer);
        }
        if (p_.outputs) project();
    }
};

}  // namespace

extern "C" {
int init() { return 0; }
int64_t panel() { return kPanel; }
int64_t multiplies_bfloat() { return kPairs; }
int64_t int8_inputs() { return Int8s::kInputs; }
void step(const Problem* p) {
    Barrier barrier;
#pragma omp parallel num_threads(p->threads)
    Step(*p, barrier).run();
}
}
