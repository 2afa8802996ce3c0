#include "cerebellum/allocate/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <regex>

namespace cerebellum {
namespace {

using ::testing::ElementsAre;
using Where = PlacedTensor::Where;

TEST(Placement, reads_as_little_from_the_host_as_any_placement) {
    std::mt19937_64 random(2);
    for (int round = 0; round < 50; ++round) {
        std::vector<PlacedTensor> tensors;
        for (int i = 0; i < 10; ++i)
            tensors.push_back({"t" + std::to_string(i), 1 + random() % 1000,
                               static_cast<double>(1 + random() % 8) / 8.0,
                               i == 0 ? Where::host : (i == 1 ? Where::host_and_either : Where::either)});
        const std::uint64_t budget = random() % 5000;
        const auto placed = place(tensors, budget);
        double best = std::numeric_limits<double>::infinity();
        for (int set = 0; set < 1024; set += 2) {  // bit 0, the embedding, stays on the host
            std::uint64_t device = 0;
            double read = 0.0;
            for (std::size_t i = 1; i < 10; ++i)
                if ((set >> i & 1) != 0)
                    device += tensors[i].bytes;
                else
                    read += static_cast<double>(tensors[i].bytes) * tensors[i].read_per_token;
            if (device <= budget) best = std::min(best, read);
        }
        EXPECT_NEAR(placed.host_bytes_per_token, best, 1e-9 * (1.0 + best));
        EXPECT_LE(placed.device_bytes, budget);
        std::uint64_t total = 0;
        for (const auto& tensor : tensors) total += tensor.bytes;
        const bool two_copies = std::ranges::find(placed.on_host, "t1") == placed.on_host.end();
        EXPECT_EQ(placed.device_bytes + placed.host_bytes, total + (two_copies ? tensors[1].bytes : 0));
        EXPECT_EQ(std::ranges::find(placed.on_host, "t0"), placed.on_host.end());
    }
}

TEST(Placement, patterns_hit_their_tensors_alone) {
    const std::vector<std::string> on_host = {"blk.3.ffn_up_exps.weight", "blk.1.ffn_up_exps.weight", "output.weight",
                                              "blk.12.attn_q.weight"};
    const auto patterns = override_patterns(on_host);
    EXPECT_THAT(patterns, ElementsAre("^blk\\.(1|3)\\.ffn_up_exps\\.weight$", "^output\\.weight$",
                                      "^blk\\.(12)\\.attn_q\\.weight$"));
    const auto hit = [&](const std::string& name) {  // as llama-model-loader.cpp matches
        return std::ranges::any_of(patterns, [&](const auto& p) { return std::regex_search(name, std::regex(p)); });
    };
    for (const auto& name : on_host) EXPECT_TRUE(hit(name)) << name;
    for (const char* name : {"blk.13.ffn_up_exps.weight", "blk.1.attn_output.weight", "blk.2.attn_q.weight",
                             "blk.1.ffn_up.weight", "blk.112.attn_q.weight"})
        EXPECT_FALSE(hit(name)) << name;
}

}  // namespace
}  // namespace cerebellum
