#include "cerebellum/replay/scalable_channels.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/replay/replay_support_test.h"

namespace cerebellum {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using testing::random_tokens;
using testing::ReplayedWindow;
using testing::small_model;

class ScalableModel : public ::testing::Test {
  protected:
    ScalableModel() : model_(Model::load(small_model())), window_(model_, random_tokens(model_, 32, 1)) {}

    /// The weight with columns multiplied by 2^inputs, or rows (elements of a vector) divided by 2^outputs.
    std::vector<std::byte> scaled(const std::string& name, int inputs, int outputs) {
        const auto* weight = window_.weight(name).weight;
        const auto n = ggml_nelements(weight);
        std::vector<float> values(static_cast<std::size_t>(n));
        const bool is_f32 = weight->type == GGML_TYPE_F32;
        if (is_f32)
            std::memcpy(values.data(), weight->data, values.size() * sizeof(float));
        else
            ggml_fp16_to_fp32_row(static_cast<const ggml_fp16_t*>(weight->data), values.data(), n);
        const auto columns = static_cast<std::size_t>(weight->ne[0]);
        for (std::size_t i = 0; i < values.size(); ++i) {
            const auto column = i % columns, channel = ggml_nrows(weight) == 1 ? column : i / columns;
            // Another factor for each channel.
            values[i] = std::ldexp(values[i], inputs * exponent(column) - outputs * exponent(channel));
        }
        std::vector<std::byte> bytes(ggml_nbytes(weight));
        if (is_f32)
            std::memcpy(bytes.data(), values.data(), bytes.size());
        else
            ggml_fp32_to_fp16_row(values.data(), reinterpret_cast<ggml_fp16_t*>(bytes.data()), n);
        return bytes;
    }
    static int exponent(std::size_t channel) { return static_cast<int>(channel * 7 % 5) - 2; }

    /// Logits with these places scaled; where only producers are, nothing takes the factors back.
    std::vector<float> logits(const std::vector<ScalableChannels>& places, bool readers = true) {
        std::map<std::string, std::pair<int, int>> sides;
        for (const auto& place : places) {
            sides[place.producer].second = 1;
            for (const auto& offset : place.offsets) sides[offset].second = 1;
            if (!readers) continue;
            for (const auto& reader : place.readers) sides[reader].first = 1;
        }
        std::map<std::string, std::vector<std::byte>> data;
        Substitutions substitutes;
        for (const auto& [name, side] : sides) {
            data[name] = scaled(name, side.first, side.second);
            substitutes[name] = {window_.weight(name).type, data[name]};
        }
        return window_.logits_from(0, substitutes);
    }

    Model model_;
    ReplayedWindow window_;
};

TEST_F(ScalableModel, has_places_behind_norms_and_between_the_matrices_of_the_feed_forward_network) {
    const auto places = find_scalable_channels(window_.topology());
    ASSERT_EQ(places.size(), 3 * window_.topology().layers().size() + 1);  // the last norm is read by the output
    const auto& block = window_.topology().layers().front();
    for (std::size_t i = 0; i < 3; ++i) {
        EXPECT_GE(places[i].first, block.begin);
        EXPECT_LT(places[i].last, block.end);
    }
    EXPECT_EQ(places[0].producer, "blk.0.attn_norm.weight");
    EXPECT_THAT(places[0].readers,
                ::testing::UnorderedElementsAre("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"));
    EXPECT_EQ(places[1].producer, "blk.0.ffn_norm.weight");
    EXPECT_EQ(places[2].producer, "blk.0.ffn_up.weight");
    EXPECT_THAT(places[2].readers, ElementsAre("blk.0.ffn_down.weight"));
    for (const auto& place : places) EXPECT_THAT(place.offsets, IsEmpty());
}

TEST_F(ScalableModel, computes_the_same_with_all_places_scaled) {
    const auto places = find_scalable_channels(window_.topology());
    const auto source = window_.logits_from(0);
    // But for weights and activations that become subnormal in F16.
    EXPECT_LT(testing::largest_change(source, logits(places)), 1e-2);
    // Each of them matters: without the readers' part the model is another one.
    for (const auto& place : places)
        EXPECT_GT(testing::largest_change(source, logits({place}, false)), 0.1) << place.producer;
}

RecordedTensor tensor(ggml_op op, const std::vector<int>& sources, int view_of = -1) {
    constexpr std::int64_t length = 8;
    RecordedTensor result;
    result.op = op;
    result.shape = {length, 1, 1, 1};
    result.strides = {4, 4 * length, 4 * length, 4 * length};
    result.sources.fill(-1);
    std::ranges::copy(sources, result.sources.begin());
    result.view_of = view_of;
    return result;
}

RecordedTensor leaf(TensorKind kind, const std::string& name) {
    auto result = tensor(GGML_OP_NONE, {});
    result.kind = kind;
    result.name = name;
    return result;
}

TEST(ScalableChannels, are_read_once_by_a_matrix_behind_a_view_of_a_view) {
    RecordedGraph graph;
    graph.tensors = {tensor(GGML_OP_MUL, {5, 6}),      // channels
                     tensor(GGML_OP_RESHAPE, {0}, 0),  // a view
                     tensor(GGML_OP_RESHAPE, {1}, 0),  // a view of it, of the same memory
                     tensor(GGML_OP_MUL_MAT, {7, 2}),
                     tensor(GGML_OP_MUL_MAT, {8, 3}),
                     leaf(TensorKind::input, "x"),
                     leaf(TensorKind::weight, "blk.0.norm.weight"),
                     leaf(TensorKind::weight, "blk.0.w.weight"),
                     leaf(TensorKind::weight, "output.weight")};
    graph.n_nodes = 5;
    graph.logits = 4;
    graph.n_tokens = 1;
    const Topology topology(graph);
    const auto places = find_scalable_channels(topology);
    ASSERT_FALSE(places.empty());
    EXPECT_EQ(places[0].producer, "blk.0.norm.weight");
    EXPECT_THAT(places[0].readers, ElementsAre("blk.0.w.weight"));
}

}  // namespace
}  // namespace cerebellum
