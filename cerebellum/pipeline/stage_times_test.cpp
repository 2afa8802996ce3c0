#include "cerebellum/pipeline/stage_times.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "cerebellum/pipeline/effort.h"

namespace cerebellum {
namespace {

StageTimes::Clock::time_point fake_now;
void pass(int seconds) {
    fake_now += std::chrono::seconds(seconds);
}

TEST(StageTimes, counts_every_moment_for_the_innermost_stage) {
    StageTimes times([] { return fake_now; });
    {
        const StageTimer text(times, "text");
        pass(2);
        {
            const StageTimer load(times, "load");
            pass(5);
        }
        pass(1);
    }
    pass(100);  // between stages: nobody's
    {
        StageTimer load(times, "load");
        pass(4);
        load.next("building");
        pass(7);
    }
    const auto stages = times.stages();
    ASSERT_EQ(stages.size(), 3U);
    EXPECT_EQ(stages[0].name, "text");
    EXPECT_DOUBLE_EQ(stages[0].wall_s, 3.0);
    EXPECT_EQ(stages[1].name, "load");
    EXPECT_DOUBLE_EQ(stages[1].wall_s, 9.0);
    EXPECT_DOUBLE_EQ(stages[2].wall_s, 7.0);
}

TEST(StageTimes, tells_what_a_stage_that_is_not_over_took_so_far) {
    StageTimes times([] { return fake_now; });
    const StageTimer open(times, "verifying");
    pass(3);
    EXPECT_DOUBLE_EQ(times.stages().front().wall_s, 3.0);
    pass(3);
    EXPECT_DOUBLE_EQ(times.stages().front().wall_s, 6.0);
}

TEST(StageTimes, ends_a_stage_that_throws) {
    StageTimes times([] { return fake_now; });
    try {
        const StageTimer measuring(times, "measuring");
        pass(2);
        throw 1;
    } catch (int) {
        pass(50);
    }
    EXPECT_DOUBLE_EQ(times.stages().front().wall_s, 2.0);
}

TEST(StageTimes, writes_only_what_is_known) {
    StageTimes times([] { return fake_now; });
    {
        const StageTimer measuring(times, "measuring");
        times.stage("measuring").quantize_s = 1.5;
        pass(4);
    }
    const auto json = to_json(times.stages());
    EXPECT_EQ(json, nlohmann::json::array({{{"name", "measuring"}, {"wall_s", 4.0}, {"quantize_s", 1.5}}}));
}

TEST(Effort, names_are_read_back) {
    for (const auto effort : {Effort::quick, Effort::normal, Effort::thorough})
        EXPECT_EQ(parse_effort(effort_name(effort)), effort);
    EXPECT_FALSE(parse_effort("hasty"));
    EXPECT_EQ(effort_label("quick"), "rough figures: made with --quick");
    EXPECT_EQ(effort_label("default"), "");
}

TEST(Effort, quick_has_a_quarter_of_the_tokens_but_two_windows) {
    EXPECT_EQ(effort_tokens(Effort::normal, 512), 4096);
    EXPECT_EQ(effort_tokens(Effort::quick, 512), 1024);
    EXPECT_EQ(effort_tokens(Effort::quick, 2048), 4096);
    EXPECT_EQ(effort_tokens(Effort::thorough, 512), 16384);
}

}  // namespace
}  // namespace cerebellum
