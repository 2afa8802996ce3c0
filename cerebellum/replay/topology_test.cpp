#include "cerebellum/replay/topology.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cerebellum/replay/graph_support_test.h"

namespace cerebellum {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using testing::leaf;
using testing::tensor;

/// Two blocks. The first writes a cache that it also reads itself, and a state that only the second block reads; the
/// embedding is the output weight too.
///
///   0 embd  = rows(embedding 10, tokens 11)
///   1 a     = blk.0.w (12) · embd
///   2 copy  : a into a view of the state 15 (in place)
///   3 view  of the cache 14
///   4 copy  : a into 3 (in place)
///   5 b     = a + cache
///   6 c     = blk.1.w (13) · b
///   7 view  of the state 15
///   8 d     = c + state
///   9 logits = embedding (16, a second leaf of the same weight) · d
class TwoBlocks : public ::testing::Test {
  protected:
    TwoBlocks() {
        graph_.tensors = {tensor(GGML_OP_GET_ROWS, {10, 11}),
                          tensor(GGML_OP_MUL_MAT, {12, 0}),
                          tensor(GGML_OP_CPY, {1, 15}, 15),
                          tensor(GGML_OP_VIEW, {14}, 14),
                          tensor(GGML_OP_CPY, {1, 3}, 3),
                          tensor(GGML_OP_ADD, {1, 3}),
                          tensor(GGML_OP_MUL_MAT, {13, 5}),
                          tensor(GGML_OP_VIEW, {15}, 15),
                          tensor(GGML_OP_ADD, {6, 7}),
                          tensor(GGML_OP_MUL_MAT, {16, 8}, -1, 32),
                          leaf(TensorKind::weight, "token_embd.weight"),
                          leaf(TensorKind::input, "tokens"),
                          leaf(TensorKind::weight, "blk.0.w.weight"),
                          leaf(TensorKind::weight, "blk.1.w.weight"),
                          leaf(TensorKind::state, "cache", 4),
                          leaf(TensorKind::state, "state", 6),
                          leaf(TensorKind::weight, "token_embd.weight")};
        graph_.n_nodes = 10;
        graph_.logits = 9;
        graph_.n_tokens = 1;
    }
    RecordedGraph graph_;
};

TEST_F(TwoBlocks, live_sets_hold_what_is_produced_before_and_read_behind_a_cut) {
    const Topology topology(graph_);
    EXPECT_THAT(topology.live_set(0), IsEmpty());
    EXPECT_THAT(topology.live_set(1), ElementsAre(0));
    EXPECT_THAT(topology.live_set(2), ElementsAre(1));          // the state is not written yet
    EXPECT_THAT(topology.live_set(3), ElementsAre(1, 15));      // the state now is
    EXPECT_THAT(topology.live_set(4), ElementsAre(1, 15));      // a view writes nothing
    EXPECT_THAT(topology.live_set(5), ElementsAre(1, 14, 15));  // the cache, through the view of it
    EXPECT_THAT(topology.live_set(6), ElementsAre(5, 15));      // nobody reads the cache any more
    EXPECT_THAT(topology.live_set(7), ElementsAre(6, 15));
    EXPECT_THAT(topology.live_set(8), ElementsAre(6, 15));  // the view is read by node 8
    EXPECT_THAT(topology.live_set(9), ElementsAre(8));
    EXPECT_THAT(topology.live_set(10), IsEmpty());
    EXPECT_EQ(topology.live_bytes(6), 8U * 4 + 6U * 4);
}

TEST_F(TwoBlocks, weights_are_listed_with_all_their_uses) {
    const Topology topology(graph_);
    EXPECT_EQ(topology.weights().size(), 3U);
    const auto& embedding = topology.weights().at("token_embd.weight");
    EXPECT_EQ(embedding.first, 0);
    EXPECT_EQ(embedding.last, 9);
    EXPECT_THAT(embedding.nodes, ElementsAre(0, 9));
    EXPECT_TRUE(embedding.read_within(0, 1));
    EXPECT_FALSE(embedding.read_within(1, 9));
    EXPECT_TRUE(embedding.read_within(1, 10));
}

TEST_F(TwoBlocks, only_weights_that_are_multiplied_as_matrices_or_looked_up_take_any_type) {
    graph_.tensors[1] = tensor(GGML_OP_MUL, {0, 12});
    graph_.tensors[7] = tensor(GGML_OP_RESHAPE, {13}, 13);  // of the other block's, which is used as a matrix too
    const Topology topology(graph_);
    EXPECT_TRUE(topology.takes_any_type("token_embd.weight"));
    EXPECT_FALSE(topology.takes_any_type("blk.0.w.weight"));
    EXPECT_FALSE(topology.takes_any_type("blk.1.w.weight"));  // node 8 adds it
    EXPECT_FALSE(topology.takes_any_type("never.read.weight"));
}

TEST_F(TwoBlocks, blocks_are_cut_where_least_is_alive) {
    const Topology topology(graph_);
    ASSERT_EQ(topology.layers().size(), 2U);
    EXPECT_EQ(topology.layers()[0].layer, 0);
    EXPECT_EQ(topology.layers()[1].layer, 1);
    // Cuts 2 to 6 are open to the second block; {a} alone at 2 is the smallest live set.
    EXPECT_EQ(topology.layers()[1].begin, 2);
    EXPECT_EQ(topology.layers()[0].end, topology.layers()[1].begin);
    EXPECT_EQ(topology.span_of("blk.0.w.weight"), 0);
    EXPECT_EQ(topology.span_of("blk.1.w.weight"), 1);
    // The tied embedding is read in front of the first block and behind the last one, and is in neither.
    EXPECT_EQ(topology.layers()[0].begin, 1);
    EXPECT_EQ(topology.head_cut(), 9);
    EXPECT_EQ(topology.span_of("token_embd.weight"), -1);
}

TEST_F(TwoBlocks, a_weight_read_only_behind_the_last_block_belongs_to_the_head) {
    graph_.tensors[16].name = "output.weight";
    const Topology topology(graph_);
    EXPECT_EQ(topology.head_cut(), 9);
    EXPECT_EQ(topology.span_of("output.weight"), 2);
}

}  // namespace
}  // namespace cerebellum
