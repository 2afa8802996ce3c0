#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/core/lfs_pointer.h"
#include "cerebellum/core/parallel.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/size.h"
#include "cerebellum/core/stats.h"

namespace cerebellum {
namespace {

TEST(Size, reads_units_as_people_write_them) {
    EXPECT_EQ(parse_size("12GB").bytes(0), 12'000'000'000u);
    EXPECT_EQ(parse_size("11.5GiB").bytes(0), 12'348'030'976u);
    EXPECT_EQ(parse_size("80 mb").bytes(0), 80'000'000u);
    EXPECT_EQ(parse_size("3500000").bytes(0), 3'500'000u);
    EXPECT_EQ(parse_size("4.25bpw").bytes(16), 8u);
}

TEST(Size, refuses_what_is_no_size) {
    for (const char* text : {"", "twelve", "12XB", "-3GB", "0", "nan", "inf GB", "1e30GB", "GB", "4bpw!"})
        EXPECT_THROW(parse_size(text), UsageError) << text;
}

TEST(Size, formats_with_three_digits) {
    EXPECT_EQ(format_bytes(999), "999 B");
    EXPECT_EQ(format_bytes(3'419'712), "3.42 MB");
    EXPECT_EQ(format_bytes(79'999'999), "80.0 MB");
    EXPECT_EQ(format_bytes(999'950), "1.00 MB");
}

TEST(QuantType, asks_ggml) {
    EXPECT_EQ(parse_type("Q4_K"), GGML_TYPE_Q4_K);
    EXPECT_EQ(parse_type("iq2_XXS"), GGML_TYPE_IQ2_XXS);
    EXPECT_EQ(parse_type("q4_2"), std::nullopt);
    EXPECT_EQ(parse_type(""), std::nullopt);
    EXPECT_TRUE(type_fits_row(GGML_TYPE_Q4_0, 576));
    EXPECT_FALSE(type_fits_row(GGML_TYPE_Q4_K, 576));
    EXPECT_THROW(type_size_bytes(GGML_TYPE_Q4_K, 576, 2), Error);
    EXPECT_EQ(type_size_bytes(GGML_TYPE_Q8_0, 64, 3), 3u * 2u * 34u);
    EXPECT_TRUE(type_needs_imatrix(GGML_TYPE_IQ1_S));
    EXPECT_EQ(default_types().size(), 19u);
}

TEST(Stats, clustered_mean_of_known_data) {
    const std::vector<double> sums = {2.0, 4.0, 6.0}, counts = {2.0, 2.0, 2.0};
    const auto estimate = clustered_mean(sums, counts);
    EXPECT_DOUBLE_EQ(estimate.mean, 2.0);
    EXPECT_NEAR(estimate.error, 1.0 / std::sqrt(3.0), 1e-12);  // sd of {1, 2, 3} over √3
    EXPECT_TRUE(std::isnan(clustered_mean(std::vector{1.0}, std::vector{1.0}).error));
}

TEST(Stats, spearman_handles_ties_and_order) {
    EXPECT_DOUBLE_EQ(spearman(std::vector{1.0, 2.0, 3.0}, std::vector{10.0, 20.0, 25.0}), 1.0);
    EXPECT_DOUBLE_EQ(spearman(std::vector{1.0, 2.0, 3.0}, std::vector{3.0, 2.0, 1.0}), -1.0);
    EXPECT_NEAR(spearman(std::vector{1.0, 1.0, 2.0}, std::vector{1.0, 2.0, 3.0}), std::sqrt(0.75), 1e-12);
}

TEST(Hash, matches_the_standard_s_example) {
    EXPECT_EQ(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Parallel, covers_every_index_once_and_passes_errors_on) {
    std::vector<int> seen(1000);
    parallel_chunks(1000, 7, 3, [&](std::int64_t begin, std::int64_t end) {
        for (auto i = begin; i < end; ++i) ++seen[static_cast<std::size_t>(i)];
    });
    EXPECT_EQ(std::accumulate(seen.begin(), seen.end(), 0), 1000);
    EXPECT_THROW(parallel_chunks(10, 1, 2, [](std::int64_t, std::int64_t) { throw Error("no"); }), Error);
}

TEST(File, that_is_a_pointer_of_git_lfs_is_refused_with_the_way_to_the_file) {
    const auto folder = std::filesystem::temp_directory_path() / "cerebellum-pointer-test";
    std::filesystem::create_directories(folder);
    const auto path = folder / "model.gguf";
    const auto refusal = [&](const auto& read) -> std::string {
        try {
            read();
        } catch (const Error& error) {
            return error.what();
        }
        return "";
    };
    write_file_atomically(path, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n");
    EXPECT_NE(refusal([&] { read_file(path); }).find("git lfs pull"), std::string::npos);
    EXPECT_NE(refusal([&] { check_no_lfs_pointer(path); }).find(path.string()), std::string::npos);
    write_file_atomically(path, "version https");
    for (const auto& other : {path, folder, folder / "nowhere"})
        EXPECT_EQ(refusal([&] { check_no_lfs_pointer(other); }), "") << other;
    std::filesystem::remove_all(folder);
}

TEST(File, whose_reading_fails_is_named) {
    try {
        read_file("/proc/self/mem");  // opens, and its first read fails
        FAIL();
    } catch (const Error& error) {
        EXPECT_STREQ(error.what(), "cannot read /proc/self/mem: Input/output error");
    }
}

TEST(File, shows_only_complete_content_under_the_final_name) {
    const auto folder = std::filesystem::temp_directory_path() / "cerebellum-file-test";
    std::filesystem::create_directories(folder);
    const auto path = folder / "out.txt";
    {
        AtomicFile file(path);
        file.write("half", 4);
    }
    EXPECT_FALSE(std::filesystem::exists(path));
    EXPECT_TRUE(std::filesystem::is_empty(folder));
    write_file_atomically(path, "whole");
    EXPECT_EQ(read_file(path), "whole");
    EXPECT_THROW(check_output_path(path, 1, false), Error);
    EXPECT_NO_THROW(check_output_path(path, 1, true));
    EXPECT_THROW(check_output_path(folder / "none" / "x", 1, false), Error);
    std::filesystem::remove_all(folder);
}

TEST(File, is_filled_in_any_order_once_it_is_reserved) {
    const auto folder = std::filesystem::temp_directory_path() / "cerebellum-reserve-test";
    std::filesystem::create_directories(folder);
    {
        AtomicFile file(folder / "out");
        file.reserve(12);
        file.write_at(8, "last", 4);
        file.write_at(0, "four", 4);
        file.commit();
    }
    EXPECT_EQ(read_file(folder / "out"), std::string("four\0\0\0\0last", 12));
    {
        AtomicFile file(folder / "out");
        EXPECT_THROW(file.reserve(1ull << 60), Error);
    }
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
    std::filesystem::remove_all(folder);
}

TEST(File, removes_what_a_killed_process_left_and_nothing_else) {
    const auto folder = std::filesystem::temp_directory_path() / "cerebellum-abandoned-test";
    std::filesystem::create_directories(folder);
    const auto make = [&](const char* name) { std::ofstream(folder / name) << "x"; };
    for (const auto* name : {"out.4194305.partial", "out.x.partial", "out.1.partial.old", "other.1.partial"})
        make(name);
    AtomicFile alive(folder / "out");
    EXPECT_FALSE(std::filesystem::exists(folder / "out.4194305.partial"));
    for (const auto* name : {"out.x.partial", "out.1.partial.old", "other.1.partial"})
        EXPECT_TRUE(std::filesystem::exists(folder / name)) << name;
    // One that is still being written is locked.
    std::filesystem::rename(folder / fmt::format("out.{}.partial", ::getpid()), folder / "out.4194306.partial");
    write_file_atomically(folder / "out", "whole");
    EXPECT_TRUE(std::filesystem::exists(folder / "out.4194306.partial"));
    std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace cerebellum
