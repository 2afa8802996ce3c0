#include "cerebellum/journal/digest.h"

#include <gtest/gtest.h>

namespace cerebellum {
namespace {

TEST(MeasurementsDigest, changes_with_every_figure_and_not_with_time) {
    const JournalIdentity identity{{{"model", "a"}}};
    Measurement first;
    first.tensor = "t.weight";
    first.type = "q4_0";
    first.counts = {3.0, 4.0};
    first.kld = {0.5, 0.25};
    const auto digest = [&](const Measurement& m) { return measurements_sha256(identity, std::span(&m, 1)); };
    const auto reference = digest(first);
    auto slower = first;
    slower.wall_s = 7.0;
    EXPECT_EQ(digest(slower), reference);
    for (auto change : {+[](Measurement& m) { m.kld[1] += 1e-16; }, +[](Measurement& m) { m.type = "q4_1"; },
                        +[](Measurement& m) { m.tier = Tier::fast; }, +[](Measurement& m) { m.counts.push_back(0.0); },
                        +[](Measurement& m) { std::swap(m.kld, m.delta_nll); }}) {
        auto other = first;
        change(other);
        EXPECT_NE(digest(other), reference);
    }
    EXPECT_NE(measurements_sha256({{{"model", "b"}}}, std::span(&first, 1)), reference);
    const UnusableFigure unusable = {"t.weight", "q2_K", Tier::fast, "why"};
    EXPECT_NE(measurements_sha256(identity, std::span(&first, 1), std::span(&unusable, 1)), reference);
}

}  // namespace
}  // namespace cerebellum
