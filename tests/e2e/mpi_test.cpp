// Measuring with several ranks that mpirun started, on this machine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "cerebellum/journal/digest.h"
#include "cerebellum/journal/journal.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

using ::testing::HasSubstr;
using testing::Program;
using testing::ProgramResult;
using testing::run_program;
using testing::small_model;
using testing::TemporaryFolder;

namespace fs = std::filesystem;

bool is_in_path(const std::string& program) {
    const char* path = std::getenv("PATH");
    std::string folders = path != nullptr ? path : "";
    for (std::size_t begin = 0; begin <= folders.size();) {
        const auto end = std::min(folders.find(':', begin), folders.size());
        if (::access((fs::path(folders.substr(begin, end - begin)) / program).c_str(), X_OK) == 0) return true;
        begin = end + 1;
    }
    return false;
}

class Mpi : public ::testing::Test {
  protected:
    void SetUp() override {
#ifndef CEREBELLUM_WITH_MPI
        GTEST_SKIP() << "this build is without MPI (CEREBELLUM_MPI)";
#endif
        if (!is_in_path("mpirun")) GTEST_SKIP() << "mpirun is not there";
        write_file_atomically(work_ / "text.txt", testing::some_text());
    }

    std::string journal(const std::string& name) const {
        return (work_ / name).string();
    }

    std::vector<std::string> ablate(const std::string& name, const std::vector<std::string>& more = {},
                                    const std::string& tokens = "128") const {
        std::vector<std::string> arguments = {"ablate",    small_model().string(),
                                              "--text",    (work_ / "text.txt").string(),
                                              "--tokens",  tokens,
                                              "--ctx",     "64",
                                              "--types",   "q2_K,q4_0",
                                              "--threads", "1",
                                              "--journal", journal(name),
                                              "--json"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return arguments;
    }
    static std::vector<std::string> with_ranks(int ranks, std::vector<std::string> arguments) {
        std::vector<std::string> all = {"mpirun",
                                        "-n",
                                        std::to_string(ranks),
                                        "--oversubscribe",
                                        "--bind-to",
                                        "none",
                                        "--allow-run-as-root",
                                        "--mca",
                                        "btl",
                                        "self,tcp",
                                        "--mca",
                                        "btl_tcp_if_include",
                                        "127.0.0.0/8",
                                        CEREBELLUM_EXECUTABLE};
        all.insert(all.end(), arguments.begin(), arguments.end());
        return all;
    }
    ProgramResult run_ranks(int ranks, const std::vector<std::string>& arguments) const {
        Program program(with_ranks(ranks, arguments), work_.path());
        return wait(program);
    }
    static ProgramResult wait(Program& program) {
        return program.wait(std::chrono::seconds(300));
    }
    std::size_t rows(const std::string& name) const {
        try {
            return Journal::open_existing(journal(name)).measurements().size();
        } catch (const Error&) {
            return 0;  // not there yet
        }
    }
    std::string digest(const std::string& name) const {
        const auto opened = Journal::open_existing(journal(name));
        return measurements_sha256(opened.identity(), opened.measurements());
    }

    TemporaryFolder work_;
};

TEST_F(Mpi, two_ranks_measure_what_one_process_measures) {
    const auto alone = run_program(ablate("alone.db"), work_.path(), std::chrono::seconds(300));
    ASSERT_EQ(alone.code, 0) << alone.errors;
    const auto together = run_ranks(2, ablate("together.db"));
    ASSERT_EQ(together.code, 0) << together.errors;
    EXPECT_EQ(digest("together.db"), digest("alone.db"));
    EXPECT_EQ(nlohmann::json::parse(together.output), nlohmann::json::parse(alone.output));
    // Nothing is left to do, for however many.
    const auto again = run_ranks(3, ablate("together.db"));
    EXPECT_EQ(again.code, 0) << again.errors;
    EXPECT_THAT(again.errors, HasSubstr("0 fast and 0 full measurements"));
}

TEST_F(Mpi, a_run_that_was_killed_goes_on_where_it_stopped) {
    const std::string long_enough = "1024";  // to be found in the middle of it
    std::size_t before = 0;
    {
        Program program(with_ranks(2, ablate("j.db", {}, long_enough)), work_.path());
        while (program.running() && rows("j.db") < 12) std::this_thread::sleep_for(std::chrono::milliseconds(5));
        program.send(SIGTERM);
        EXPECT_NE(wait(program).code, 0);
        before = rows("j.db");
        EXPECT_GE(before, 12U);
    }
    const auto resumed = run_ranks(2, ablate("j.db", {}, long_enough));
    ASSERT_EQ(resumed.code, 0) << resumed.errors;
    const auto alone = run_program(ablate("alone.db", {}, long_enough), work_.path(), std::chrono::seconds(300));
    ASSERT_EQ(alone.code, 0) << alone.errors;
    EXPECT_EQ(digest("j.db"), digest("alone.db"));
    EXPECT_LT(before, rows("j.db"));
}

TEST_F(Mpi, wrong_usage_is_said_once) {
    const auto result = run_ranks(2, ablate("j.db", {"--shard", "3/2"}));
    EXPECT_NE(result.code, 0);
    const auto first = result.errors.find("--shard 3/2");
    ASSERT_NE(first, std::string::npos) << result.errors;
    EXPECT_EQ(result.errors.find("--shard 3/2", first + 1), std::string::npos) << result.errors;
}

TEST_F(Mpi, devices_are_dealt_to_ranks) {
    EXPECT_EQ(run_program(ablate("j.db", {"--device", "CPU,CPU"}), work_.path()).code, 2);
    const auto result = run_ranks(2, ablate("j.db", {"--device", "CPU,CPU", "--tensors", "blk.0.attn_q.weight"}));
    EXPECT_EQ(result.code, 0) << result.errors;
    EXPECT_GT(rows("j.db"), 0U);
}

}  // namespace
}  // namespace cerebellum
