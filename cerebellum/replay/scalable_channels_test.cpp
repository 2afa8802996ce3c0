#include "cerebellum/replay/scalable_channels.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/replay/graph_support_test.h"
#include "cerebellum/replay/replay_support_test.h"

namespace cerebellum {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using testing::leaf;
using testing::random_tokens;
using testing::ReplayedWindow;
using testing::small_model;
using testing::tensor;

TEST(ScalableChannels, lie_behind_norms_and_between_the_matrices_of_the_feed_forward_network) {
    const auto model = Model::load(small_model());
    const ReplayedWindow window(model, random_tokens(model, 32, 1));
    const auto places = find_scalable_channels(window.topology());
    ASSERT_EQ(places.size(), 3 * window.topology().layers().size() + 1);  // the last norm is read by the output
    const auto& block = window.topology().layers().front();
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
