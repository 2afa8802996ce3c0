#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cerebellum/core/equal_strides.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/llama/log.h"
#include "cerebellum/replay/engine.h"
#include "cerebellum/replay/replay_support_test.h"

namespace cerebellum {
namespace {

using testing::decode;
using testing::difference;
using testing::largest_change;
using testing::random_tokens;
using testing::ReplayedWindow;

constexpr int n_tokens = 48;

const Model& model() {
    static const Model loaded = [] {
        silence_llama_log();
        return Model::load(testing::small_model());
    }();
    return loaded;
}

/// The first test to need it pays for it.
ReplayedWindow& window() {
    static ReplayedWindow recorded(model(), random_tokens(model(), n_tokens, 1));
    return recorded;
}

const std::vector<float>& baseline() {
    static const std::vector<float> logits = decode(model(), window().tokens());
    return logits;
}

TEST(Replay, from_every_layer_boundary_equals_llama_decode_bit_for_bit) {
    const auto cuts = window().layer_cuts();
    ASSERT_GT(cuts.size(), static_cast<std::size_t>(model().n_layers()));
    for (const int cut : cuts) EXPECT_EQ(difference(window().logits_from(cut), baseline()), "") << "cut at " << cut;
}

TEST(Replay, from_the_first_use_of_every_weight_equals_llama_decode_bit_for_bit) {
    const auto cuts = window().weight_cuts();
    ASSERT_GT(cuts.size(), 6U * static_cast<unsigned>(model().n_layers()));
    for (const int cut : cuts) EXPECT_EQ(difference(window().logits_from(cut), baseline()), "") << "cut at " << cut;
}

TEST(Replay, notices_a_wrong_live_state) {
    // What the tests above prove, they prove only if a damaged state changes the logits.
    const auto& topology = window().topology();
    const auto& inputs = window().inputs();
    Device device(1);
    WeightStore weights(device);
    const int cut = topology.layers()[3].begin;
    Slice before(topology, device, weights, 0, cut, {});
    before.run(inputs, {});
    auto state = before.live_out({});
    ASSERT_EQ(state.values.size(), 1U);
    auto bytes = read(*state.values.begin()->second);
    const float other = 1.0F;
    std::memcpy(bytes.data(), &other, sizeof other);
    state.values.begin()->second = device.values().keep(bytes);
    Slice::Options options;
    options.reads = {topology.graph().logits};
    Slice behind(topology, device, weights, cut, topology.n_nodes(), options);
    behind.run(inputs, state);
    const auto logits = behind.read(topology.graph().logits);
    EXPECT_NE(std::memcmp(logits.data(), baseline().data(), logits.size()), 0);
    EXPECT_THROW(behind.run(inputs, {}), Error);
}

/// What a backend that knows a graph by its bytes sees of it, apart from addresses, which may well be those of another
/// graph before it: the nodes, and the shapes and strides of their sources.
std::string seen_by_bytes(const Slice& slice) {
    std::string seen;
    auto* graph = const_cast<ggml_cgraph*>(slice.nodes());
    const auto add = [&](const auto& value) { seen.append(reinterpret_cast<const char*>(&value), sizeof value); };
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        auto node = *ggml_graph_node(graph, i);
        for (const auto* source : node.src) {
            if (source == nullptr) continue;
            add(source->ne);
            add(source->nb);
        }
        node.buffer = nullptr;
        node.view_src = nullptr;
        node.data = nullptr;
        std::ranges::fill(node.src, nullptr);
        add(node);
    }
    return seen;
}

TEST(Replay, weights_in_types_of_equal_strides_make_graphs_that_differ_in_their_nodes_bytes) {
    const std::string name = "blk.0.ffn_down.weight";
    const auto& topology = window().topology();
    const auto& recorded = window().weight(name);
    Device device(1);
    WeightStore weights(device);
    const auto seen_with = [&](ggml_type type) {
        const std::vector<std::byte> zeros(type_size_bytes(type, recorded.shape[0], recorded.shape[1]));
        Slice::Options options;
        options.substitutes = {{name, {type, zeros}}};
        return seen_by_bytes(Slice(topology, device, weights, 0, topology.layers()[1].begin, options));
    };
    std::set<std::string> pairs;
    for (const auto& [a, b] : pairs_of_equal_strides(recorded.shape[0])) {
        const auto pair = type_name(a) + " and " + type_name(b);
        EXPECT_TRUE(seen_with(a) != seen_with(b)) << pair;
        EXPECT_TRUE(seen_with(a) == seen_with(a)) << pair;
        pairs.insert(pair);
    }
    for (const auto* known : {"q3_K and iq3_s", "q4_0 and iq4_nl", "f16 and bf16"})
        EXPECT_TRUE(pairs.contains(known)) << known;
}

TEST(Replay, a_weight_substituted_in_a_suffix_equals_it_substituted_in_the_whole) {
    for (const auto& [name, type] : {std::pair<std::string, ggml_type>{"blk.0.attn_q.weight", GGML_TYPE_Q2_K},
                                     {"blk.2.ffn_down.weight", GGML_TYPE_Q4_0},
                                     {"blk.5.attn_v.weight", GGML_TYPE_IQ3_S},
                                     {"output.weight", GGML_TYPE_Q3_K}}) {
        const auto bytes = window().quantized(name, type);
        const Substitutions substitutes = {{name, {type, bytes}}};
        const auto whole = window().logits_from(0, substitutes);
        EXPECT_GT(largest_change(whole, baseline()), 1e-3) << name;
        const auto& use = window().topology().weights().at(name);
        EXPECT_EQ(difference(window().logits_from(use.first, substitutes), whole), "") << name;
        // From a cut behind its last use it must not matter at all.
        if (use.last + 1 >= window().topology().n_nodes()) continue;
        EXPECT_EQ(difference(window().logits_from(use.last + 1, substitutes), baseline()), "") << name;
    }
}

TEST(Replay, many_weights_can_be_substituted_at_once) {
    std::map<std::string, std::vector<std::byte>> bytes;
    Substitutions substitutes;
    for (const auto& [name, use] : window().topology().weights()) {
        if (!name.starts_with("blk.") || window().weight(name).weight->type != GGML_TYPE_F16) continue;
        bytes[name] = window().quantized(name, GGML_TYPE_Q4_K);
        substitutes[name] = {GGML_TYPE_Q4_K, bytes[name]};
    }
    ASSERT_EQ(substitutes.size(), 42U);
    const auto all = window().logits_from(0, substitutes);
    EXPECT_GT(largest_change(all, baseline()), 1e-2);
    // The same weights in their own type are a substitution that changes nothing.
    for (auto& [name, substitute] : substitutes) {
        bytes[name] = window().quantized(name, GGML_TYPE_F16);
        substitute = {GGML_TYPE_F16, bytes[name]};
    }
    EXPECT_EQ(difference(window().logits_from(0, substitutes), baseline()), "");
}

TEST(Replay, refuses_substitutes_that_do_not_fit) {
    const auto bytes = window().quantized("blk.0.attn_q.weight", GGML_TYPE_Q8_0);
    const std::span<const std::byte> all = bytes;
    testing::error_of([&] {
        window().logits_from(0, {{"blk.0.attn_q.weight", {GGML_TYPE_Q8_0, all.first(all.size() - 34)}}});
    });
}

/// −log softmax and Kullback-Leibler divergence in double precision, from llama_decode's logits.
struct Exact {
    double kld = 0.0, nll = 0.0, reference_nll = 0.0, same_top = 0.0, count = 0.0;
};

std::vector<double> exact_log_softmax(std::span<const float> logits) {
    const auto max = static_cast<double>(std::ranges::max(logits));
    double sum = 0.0;
    for (const float x : logits) sum += std::exp(static_cast<double>(x) - max);
    std::vector<double> result;
    for (const float x : logits) result.push_back(static_cast<double>(x) - max - std::log(sum));
    return result;
}

Exact exact_scores(std::span<const float> variant, std::span<const float> reference, std::span<const Token> tokens) {
    const auto n_vocab = variant.size() / tokens.size();
    Exact exact;
    for (auto i = static_cast<std::size_t>(burn_in(n_tokens)); i + 1 < tokens.size(); ++i) {
        const auto q = exact_log_softmax(variant.subspan(i * n_vocab, n_vocab));
        const auto p = exact_log_softmax(reference.subspan(i * n_vocab, n_vocab));
        for (std::size_t v = 0; v < n_vocab; ++v) exact.kld += std::exp(p[v]) * (p[v] - q[v]);
        const auto target = static_cast<std::size_t>(tokens[i + 1]);
        exact.nll -= q[target];
        exact.reference_nll -= p[target];
        exact.same_top +=
            std::ranges::max_element(q) - q.begin() == std::ranges::max_element(p) - p.begin() ? 1.0 : 0.0;
        exact.count += 1.0;
    }
    return exact;
}

class Scores : public ::testing::Test {
  protected:
    Scores() : engine_(model(), n_tokens, 1), window_(engine_.prepare(random_tokens(model(), n_tokens, 1))) {
        const auto body = engine_.slice(0, engine_.topology().head_cut());
        body->run(window_.inputs, {});
        at_head_ = body->live_out({});
        engine_.set_reference(window_, at_head_);
    }

    void expect_exact(const WindowScore& score, std::span<const float> variant) {
        const auto exact = exact_scores(variant, baseline(), window_.tokens);
        EXPECT_EQ(score.count, exact.count);
        EXPECT_EQ(score.count, n_tokens - 1 - burn_in(n_tokens));
        EXPECT_NEAR(score.kld, exact.kld, 1e-5 * exact.kld);
        EXPECT_NEAR(score.nll, exact.nll, 1e-6 * exact.nll);
        EXPECT_NEAR(score.reference_nll, exact.reference_nll, 1e-6 * exact.reference_nll);
        EXPECT_EQ(score.same_top, exact.same_top);
    }

    ReplayEngine engine_;
    Window window_;
    LiveState at_head_;
};

TEST_F(Scores, of_the_source_against_itself_are_zero) {
    const auto score = engine_.score(window_, at_head_);
    EXPECT_LT(std::fabs(score.kld), 1e-12);
    EXPECT_EQ(score.nll, score.reference_nll);
    EXPECT_EQ(score.same_top, score.count);
}

TEST_F(Scores, of_a_weight_inside_a_block_equal_a_computation_in_double_precision) {
    const std::string name = "blk.3.ffn_up.weight";
    const auto bytes = ::cerebellum::window().quantized(name, GGML_TYPE_Q2_K);
    Slice::Options options;
    options.substitutes = {{name, {GGML_TYPE_Q2_K, bytes}}};
    const auto body = engine_.slice(0, engine_.topology().head_cut(), options);
    body->run(window_.inputs, {});
    const auto score = engine_.score(window_, body->live_out({}));
    expect_exact(score, ::cerebellum::window().logits_from(0, options.substitutes));
    EXPECT_GT(score.kld, 1e-3);
}

TEST_F(Scores, of_the_output_weight_equal_a_computation_in_double_precision) {
    const std::string name = "output.weight";
    for (const auto type : {GGML_TYPE_Q2_K, GGML_TYPE_Q8_0}) {
        const auto bytes = ::cerebellum::window().quantized(name, type);
        const Substitutions substitutes = {{name, {type, bytes}}};
        const auto head = engine_.make_head(substitutes);
        expect_exact(engine_.score(*head, window_, at_head_), ::cerebellum::window().logits_from(0, substitutes));
    }
}

TEST_F(Scores, self_check_finds_no_deviation) {
    const auto check = engine_.self_check(std::span(&window_, 1));
    EXPECT_EQ(check.largest_deviation, 0.0);
    EXPECT_EQ(check.kld, 0.0);
    EXPECT_LT(std::fabs(check.null_floor_kld), 1e-12);
}

TEST(Scoring, sums_leave_out_the_burn_in_and_positions_without_a_next_token) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const std::vector<PositionScore> scores = {{100, 100, 100, 1}, {1, 2, 3, 1}, {10, 20, 30, 0}, {5, nan, nan, 1}};
    const auto sum = sum_scores(scores, 1);
    EXPECT_EQ(sum.count, 2.0);
    EXPECT_EQ(sum.kld, 11.0);
    EXPECT_EQ(sum.nll, 22.0);
    EXPECT_EQ(sum.reference_nll, 33.0);
    EXPECT_EQ(sum.same_top, 1.0);
}

/// Bytes of some rows, and the whole weight with only these in another type: F32, since no type holds both.
struct SomeRows {
    std::vector<std::int64_t> rows;
    std::vector<std::byte> sampled;
    std::vector<float> mixed;
};

SomeRows some_rows(const std::string& name, ggml_type type, std::int64_t every) {
    const auto& weight = window().weight(name);
    const auto row_length = static_cast<std::size_t>(weight.shape[0]);
    const auto all = window().quantized(name, type);
    const auto row_bytes = ggml_row_size(type, weight.shape[0]);
    SomeRows result;
    result.mixed.resize(row_length * static_cast<std::size_t>(weight.shape[1]));
    ggml_get_type_traits(weight.type)->to_float(weight.weight->data, result.mixed.data(), std::ssize(result.mixed));
    for (std::int64_t row = 1; row < weight.shape[1]; row += every) {
        const auto from = all.begin() + row * static_cast<std::ptrdiff_t>(row_bytes);
        result.rows.push_back(row);
        result.sampled.insert(result.sampled.end(), from, from + static_cast<std::ptrdiff_t>(row_bytes));
        ggml_get_type_traits(type)->to_float(&*from, result.mixed.data() + static_cast<std::size_t>(row) * row_length,
                                             weight.shape[0]);
    }
    return result;
}

/// The change of the logits by some rows, against the same by a weight in F32 that holds the same numbers. The kernel
/// of Q4_0 rounds activations to 8 bits as well, which that of F32 does not, so what is compared is most of the change.
TEST(Replay, some_rows_of_a_weight_change_what_these_rows_change) {
    for (const auto* name : {"blk.2.ffn_up.weight", "blk.5.attn_v.weight", "output.weight", "token_embd.weight"}) {
        if (!window().topology().weights().contains(name)) continue;
        ASSERT_TRUE(Slice::can_change_rows(window().topology(), name)) << name;
        auto some = some_rows(name, GGML_TYPE_Q4_0, 3);
        if (window().topology().only_looked_up(name)) {  // what is looked up must be among them
            const auto all = window().quantized(name, GGML_TYPE_Q4_0);
            some.rows.clear();
            some.sampled.clear();
            auto tokens = window().tokens();
            std::ranges::sort(tokens);
            tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
            const auto row_bytes = static_cast<std::ptrdiff_t>(all.size()) / window().weight(name).shape[1];
            for (const auto token : tokens) {
                some.rows.push_back(token);
                some.sampled.insert(some.sampled.end(), all.begin() + token * row_bytes,
                                    all.begin() + (token + 1) * row_bytes);
            }
            const auto sampled = window().logits_from(0, {{name, {GGML_TYPE_Q4_0, some.sampled, some.rows}}});
            EXPECT_EQ(difference(sampled, window().logits_from(0, {{name, {GGML_TYPE_Q4_0, all}}})), "") << name;
            continue;
        }
        const auto sampled = window().logits_from(0, {{name, {GGML_TYPE_Q4_0, some.sampled, some.rows}}});
        const auto mixed = window().logits_from(0, {{name, {GGML_TYPE_F32, std::as_bytes(std::span(some.mixed))}}});
        const auto whole =
            window().logits_from(0, {{name, {GGML_TYPE_Q4_0, window().quantized(name, GGML_TYPE_Q4_0)}}});
        const double change = largest_change(mixed, baseline());
        EXPECT_GT(change, 0.0) << name;
        EXPECT_LT(largest_change(sampled, mixed), 0.5 * change) << name;
        EXPECT_GT(largest_change(sampled, whole), 0.5 * change) << name << ": all rows changed";
    }
}

TEST(Replay, rows_that_are_not_changed_may_be_given) {
    const std::string name = "blk.2.ffn_up.weight";
    const auto some = some_rows(name, GGML_TYPE_Q3_K, 5);
    const auto& topology = window().topology();
    const int node = topology.weights().at(name).first, logits = topology.graph().logits;
    Device device(1);
    WeightStore weights(device);
    Slice before(topology, device, weights, 0, node, {});
    before.run(window().inputs(), {});
    auto state = before.live_out({});
    Slice product(topology, device, weights, node, node + 1, {});
    product.run(window().inputs(), state);
    state.values[node] = product.live_out(state).values.at(node);
    Slice::Options options;
    options.substitutes = {{name, {GGML_TYPE_Q3_K, some.sampled, some.rows}}};
    options.reads = {logits};
    options.unchanged_rows_given = true;
    Slice behind(topology, device, weights, node, topology.n_nodes(), options);
    behind.run(window().inputs(), state);
    const auto bytes = behind.read(logits);
    std::vector<float> given(bytes.size() / sizeof(float));
    std::memcpy(given.data(), bytes.data(), bytes.size());
    const auto computed = window().logits_from(node, {{name, {GGML_TYPE_Q3_K, some.sampled, some.rows}}});
    EXPECT_EQ(difference(given, computed), "");
    EXPECT_NE(difference(given, baseline()), "");
}

}  // namespace
}  // namespace cerebellum
