#include "cerebellum/calibrate/text.h"

#include <gtest/gtest.h>

#include <set>

#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/llama/log.h"

namespace cerebellum {
namespace {

/// Windows that can be told apart.
TokenWindows numbered(int n) {
    TokenWindows windows;
    for (int i = 0; i < n; ++i) windows.push_back({i});
    return windows;
}

TEST(DealWindows, gives_each_part_what_it_wants_and_no_window_twice) {
    for (const int available : {13, 14, 20, 100, 1001}) {
        const auto parts = deal_windows(numbered(available), {8, 1, 4});
        EXPECT_EQ(parts.calibration.size(), 8U);
        EXPECT_EQ(parts.selection.size(), 1U);
        EXPECT_EQ(parts.test.size(), 4U);
        std::set<Token> seen;
        for (const auto* part : {&parts.calibration, &parts.selection, &parts.test})
            for (const auto& window : *part) EXPECT_TRUE(seen.insert(window.at(0)).second) << window.at(0);
    }
}

TEST(DomainShare, gives_every_domain_its_part_of_the_windows_and_none_twice) {
    const TextDemand demand{40, 5, 10};
    for (const int n : {1, 2, 3, 4, 5}) {
        TextDemand sum;
        for (int d = 0; d < n; ++d) {
            const auto share = domain_share(demand, d, n);
            EXPECT_EQ(share.calibration, 4 * share.test) << "every fourth one is measured on";
            EXPECT_NEAR(share.test, 10.0 / n, 1.0);
            sum.calibration += share.calibration;
            sum.selection += share.selection;
            sum.test += share.test;
        }
        EXPECT_EQ(sum.calibration, demand.calibration);
        EXPECT_EQ(sum.selection, demand.selection);
        EXPECT_EQ(sum.test, demand.test);
    }
}

TEST(TextParts, keep_the_labels_of_their_windows) {
    TextParts parts;
    parts.calibration = numbered(3);
    parts.selection = numbered(1);
    parts.test = numbered(2);
    EXPECT_TRUE(deserialize_text_parts(serialize(parts)).calibration_domains.empty());
    parts.calibration_domains = {"code", "code", "chat"};
    parts.selection_domains = {"code"};
    parts.test_domains = {"code", "chat"};
    const auto again = deserialize_text_parts(serialize(parts));
    EXPECT_EQ(again.calibration_domains, parts.calibration_domains);
    EXPECT_EQ(again.selection_domains, parts.selection_domains);
    EXPECT_EQ(again.test_domains, parts.test_domains);
}

TEST(DealWindows, spreads_each_part_over_the_whole_list) {
    const auto parts = deal_windows(numbered(1000), {40, 10, 20});
    for (const auto* part : {&parts.calibration, &parts.selection, &parts.test}) {
        // Every tenth of the list holds about a tenth of the part.
        std::map<int, int> tenths;
        for (const auto& window : *part) ++tenths[window.at(0) / 100];
        for (int tenth = 0; tenth < 10; ++tenth)
            EXPECT_NEAR(tenths[tenth], static_cast<double>(part->size()) / 10.0, 1.0) << tenth;
    }
}

TEST(DealWindows, shrinks_all_parts_in_proportion_where_there_is_too_little) {
    const auto parts = deal_windows(numbered(26), {32, 4, 16});
    EXPECT_EQ(parts.calibration.size(), 16U);
    EXPECT_EQ(parts.selection.size(), 2U);
    EXPECT_EQ(parts.test.size(), 8U);
    const auto least = deal_windows(numbered(3), {32, 4, 8});
    EXPECT_EQ(least.calibration.size(), 1U);
    EXPECT_EQ(least.selection.size(), 1U);
    EXPECT_EQ(least.test.size(), 1U);
}

TEST(TextParts, survive_being_stored) {
    auto parts = deal_windows(numbered(20), {8, 2, 4});
    parts.description = "a file.txt";
    const auto back = deserialize_text_parts(serialize(parts));
    EXPECT_EQ(back.calibration, parts.calibration);
    EXPECT_EQ(back.selection, parts.selection);
    EXPECT_EQ(back.test, parts.test);
    EXPECT_EQ(back.description, parts.description);
    EXPECT_EQ(back.fingerprint(), parts.fingerprint());
    auto other = parts;
    std::swap(other.selection[0], other.test[0]);
    EXPECT_NE(other.fingerprint(), parts.fingerprint());
    testing::error_of([] { deserialize_text_parts("no such thing"); });
}

TEST(WindowsFromFiles, begin_with_bos_and_hold_the_text_in_order) {
    silence_llama_log();
    const auto model = Model::load(testing::small_model());
    const auto license = std::filesystem::path(CEREBELLUM_SOURCE_DIR) / "LICENSE";
    const auto tokens = model.tokenize(read_file(license));
    const auto parts = windows_from_files(model, {license}, 32, {1000, 1000, 1000});
    std::size_t windows = 0;
    for (const auto* part : {&parts.calibration, &parts.selection, &parts.test})
        for (const auto& window : *part) {
            ++windows;
            ASSERT_EQ(window.size(), 32U);
            EXPECT_EQ(window.front(), model.first_token());
            EXPECT_NE(std::search(tokens.begin(), tokens.end(), window.begin() + 1, window.end()), tokens.end());
        }
    EXPECT_EQ(windows, tokens.size() / 31);
}

}  // namespace
}  // namespace cerebellum
