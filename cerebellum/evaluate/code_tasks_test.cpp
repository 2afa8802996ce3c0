#include "cerebellum/evaluate/code_tasks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <memory>
#include <vector>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum {
namespace {

using ::testing::HasSubstr;

const CodeTask twice = {"T/0",
                        "from typing import List\n\ndef helper(x):\n    return x + x\n\n\ndef twice(x: int) -> int:\n"
                        "    \"\"\" Twice x. \"\"\"\n",
                        "twice",
                        "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n"};

/// Null where this system has none.
std::unique_ptr<Sandbox> make_sandbox(double wall_s) {
    SandboxLimits limits;
    limits.wall_s = wall_s;
    limits.cpu_s = 2;
    limits.memory_bytes = 300ULL << 20;
    limits.processes = 20;
    limits.output_bytes = 200'000;
    try {
        return std::make_unique<Sandbox>(Sandbox::Isolation::full, limits);
    } catch (const Error&) {
        return nullptr;
    }
}

/// For programs that end; a busy machine takes its time.
const Sandbox* sandbox() {
    static const auto made = make_sandbox(120.0);
    return made.get();
}

/// For programs that do not want to end.
const Sandbox* strict_sandbox() {
    static const auto made = make_sandbox(4.0);
    return made.get();
}

struct Extraction {
    const char* what;
    const char* reply;
};

void PrintTo(const Extraction& extraction, std::ostream* out) {
    *out << extraction.what;
}

class ExtractSolution : public ::testing::TestWithParam<Extraction> {};

TEST_P(ExtractSolution, runs_as_the_reply_meant_it) {
    if (sandbox() == nullptr) GTEST_SKIP() << "no sandbox here";
    const auto solution = extract_solution(GetParam().reply, twice);
    const auto verdict = judge_solution(twice, solution, *sandbox());
    EXPECT_TRUE(verdict.passed) << GetParam().what << ": " << verdict.reason << "\n" << solution;
}

INSTANTIATE_TEST_SUITE_P(
    Replies, ExtractSolution,
    ::testing::Values(
        Extraction{"a fenced function", "```python\ndef twice(x):\n    return 2 * x\n```"},
        Extraction{
            "a fence in the middle of prose",
            "Sure! Here it is:\n\n```python\ndef twice(x):\n    return 2 * x\n```\n\nIt doubles x. Use `twice(3)`."},
        Extraction{"a body with its indentation", "    y = x\n    return x + y\n"},
        Extraction{"a body without indentation", "if x:\n    return 2 * x\nreturn 0\n"},
        Extraction{"a fenced body", "```\n    return 2 * x\n```"},
        Extraction{"the signature again", "def twice(x: int) -> int:\n    \"\"\" Twice x. \"\"\"\n    return 2 * x\n"},
        Extraction{"prose around unfenced code",
                   "Here is the function:\n\ndef twice(x):\n    return 2 * x\n\nThis function doubles its argument."},
        Extraction{"a wrong first attempt",
                   "```python\ndef twice(x):\n    return x\n```\nThat is wrong. Corrected:\n```python\ndef twice(x):\n "
                   "   return 2 "
                   "* x\n```\n"},
        Extraction{"an example behind the solution",
                   "```python\ndef twice(x):\n    return 2 * x\n```\nExample:\n```python\nassert twice(3) == 7\n```"},
        Extraction{"the prompt's helper", "```python\ndef twice(x):\n    return helper(x)\n```"},
        Extraction{"the prompt's import", "```python\ndef twice(x) -> List[int]:\n    return 2 * x\n```"},
        Extraction{"a fence that was never closed", "```python\ndef twice(x):\n    return 2 * x\n"},
        Extraction{"a fence inside of a list",
                   "1. Write it:\n   ```python\n   def twice(x):\n       return 2 * x\n   ```\n"},
        Extraction{"reasoning in front",
                   "<think>```python\ndef twice(x):\n    return 0\n```</think>```python\ndef twice(x):\n    "
                   "return 2 * x\n```"},
        Extraction{"a longer name that begins alike",
                   "```python\ndef twice_it(x):\n    return 2 * x\n\ndef twice(x):\n    return twice_it(x)\n```"},
        Extraction{"Windows line ends", "```python\r\ndef twice(x):\r\n    return 2 * x\r\n```\r\n"}));

TEST(ExtractSolution, of_nothing_is_nothing) {
    EXPECT_EQ(extract_solution(" \n", twice), "");
    EXPECT_EQ(extract_solution("<think>def twice(x):\n    return", twice), "");
}

TEST(ExtractSolution, knows_code_without_fences_by_its_first_words) {
    const auto kept = [](const std::string& line) {
        const auto text = "Prose about it.\n" + line + "\ndef twice(x):\n    return 2 * x\n";
        return extract_solution(text, twice).find(line + "\n") != std::string::npos;
    };
    for (const auto* line : {"import math", "from a.b import c", "class X:", "@cache", "# note", "if x > 1: y()",
                             "for i in x:", "while 1:", "try:", "with open(f) as g:", "x = 1", "x: list[int] = []",
                             "x: = 3", "async def f():", "def f():", "]", ")"})
        EXPECT_TRUE(kept(line)) << line;
    for (const auto* line : {"important", "from here on", "classes", "x == 1", "if only", "format: this",
                             "x: is =", "async defence", "from x imports", "= 3"})
        EXPECT_FALSE(kept(line)) << line;
}

/// std::regex took a frame of the stack for each character: a line of 100 kB ended the program.
TEST(ExtractSolution, reads_lines_of_any_length) {
    for (const auto* piece : {"x", " ", ":", "=", "x ", "x:", "[", "世", "from ", "if :"}) {
        std::string line;
        while (line.size() < 200'000) line += piece;
        for (const std::string begin : {"", "x = ", "x: ", "if ", "from ", "import "})
            EXPECT_NE(extract_solution(begin + line + "\ndef twice(x):\n    return 2 * x\n", twice), "") << piece;
    }
}

TEST(JudgeSolution, sees_wrong_answers_and_early_ends) {
    if (sandbox() == nullptr) GTEST_SKIP() << "no sandbox here";
    const auto verdict = [](const std::string& code) { return judge_solution(twice, code, *sandbox()); };
    EXPECT_THAT(verdict("def twice(x):\n    return 3 * x\n").reason, HasSubstr("AssertionError"));
    EXPECT_THAT(verdict("def twice(x:\n").reason, HasSubstr("SyntaxError"));
    EXPECT_FALSE(verdict("import sys\nsys.exit(0)\n").passed);
    EXPECT_FALSE(verdict("import os\nos._exit(0)\n").passed);
    EXPECT_FALSE(verdict("").passed);
}

struct Hostile {
    const char* what;
    const char* code;
};

void PrintTo(const Hostile& hostile, std::ostream* out) {
    *out << hostile.what;
}

class HostileProgram : public ::testing::TestWithParam<Hostile> {};

/// None may pass (those that look around define a right solution where they find something), none may take longer than
/// its limits, and nothing of it may be seen outside.
TEST_P(HostileProgram, is_contained) {
    if (strict_sandbox() == nullptr) GTEST_SKIP() << "no sandbox here";
    const testing::TemporaryFolder outside;
    write_file_atomically(outside / "precious", "data");
    std::filesystem::permissions(outside.path(), std::filesystem::perms::all);
    std::filesystem::permissions(outside / "precious", std::filesystem::perms::all);
    ::setenv("CEREBELLUM_SECRET", "hunter2", 1);
    auto code = std::string(GetParam().code);
    for (std::size_t at; (at = code.find("FOLDER")) != std::string::npos;) code.replace(at, 6, outside.path().string());
    for (std::size_t at; (at = code.find("PARENT")) != std::string::npos;)
        code.replace(at, 6, std::to_string(getpid()));
    const auto begun = std::chrono::steady_clock::now();
    const auto verdict = judge_solution(twice, code, *strict_sandbox());
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
    ::unsetenv("CEREBELLUM_SECRET");
    EXPECT_FALSE(verdict.passed) << GetParam().what;
    EXPECT_LT(seconds, 30.0) << GetParam().what;
    EXPECT_EQ(read_file(outside / "precious"), "data") << GetParam().what;
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(outside.path()), {}), 1) << GetParam().what;
    EXPECT_EQ(verdict.reason.find("hunter2"), std::string::npos);
}

constexpr auto good = "def twice(x):\n    return 2 * x\n";

INSTANTIATE_TEST_SUITE_P(
    Programs, HostileProgram,
    ::testing::Values(
        Hostile{"fork bomb",
                "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"},
        Hostile{"fork bomb that detaches",
                "import os\nfor i in range(100000):\n    if os.fork() == 0:\n        os.setsid()\n"},
        Hostile{"memory hog", "x = []\nwhile True:\n    x.append(bytearray(10**7))\n"},
        Hostile{"memory hog in many processes",
                "import os, time\nfor i in range(15):\n    if os.fork() == 0:\n        x = bytearray(10**8)\n        "
                "time.sleep(60)\ntime.sleep(60)\n"},
        Hostile{"endless loop", "while True:\n    pass\n"},
        Hostile{"endless sleep", "import time\ntime.sleep(10**6)\n"},
        Hostile{"endless loop that ignores signals",
                "import signal\nfor s in range(1, 64):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n    except "
                "(OSError, ValueError):\n        pass\nwhile True:\n    pass\n"},
        Hostile{"deletes files", "import shutil\nshutil.rmtree('FOLDER')\n"},
        Hostile{"deletes files by a shell",
                "import os\nos.system('rm -rf FOLDER; touch FOLDER/new')\nraise SystemExit(1)\n"},
        Hostile{"writes a file", "open('FOLDER/new', 'w').write('x')\n"},
        Hostile{"writes to the system", "open('/usr/bin/evil', 'w').write('x')\n"},
        Hostile{"reads a file outside",
                "try:\n    open('FOLDER/precious').read()\n    def twice(x): return 2 * x\nexcept OSError:\n    raise "
                "SystemExit(1)\n"},
        Hostile{"reads the users' secrets",
                "import os\ntry:\n    os.listdir('/root')\n    def twice(x): return 2 * x\nexcept OSError:\n    raise "
                "SystemExit(1)\n"},
        Hostile{"reads the environment",
                "import os\nif 'CEREBELLUM_SECRET' in os.environ:\n    def twice(x): return 2 * x\n"},
        Hostile{"reads its parents' environment",
                "import glob\nfor f in glob.glob('/proc/[0-9]*/environ'):\n    try:\n        if b'hunter2' in open(f, "
                "'rb').read():\n            def twice(x): return 2 * x\n    except OSError:\n        pass\n"},
        Hostile{"uses the network",
                "import socket\ntry:\n    socket.create_connection(('127.0.0.1', 22), 2)\nexcept "
                "ConnectionRefusedError:\n    pass\n"
                "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.connect(('10.0.0.1', 53))\n"
                "def twice(x): return 2 * x\n"},
        Hostile{"prints without end", "while True:\n    print('x' * 10000)\n"},
        Hostile{"fills the disk", "f = open('/tmp/f', 'wb')\nwhile True:\n    f.write(b'x' * 10**6)\n"},
        Hostile{"kills its parents", "import os, signal\nos.kill(PARENT, signal.SIGKILL)\n"},
        Hostile{"kills all it can", "import os, signal\nos.kill(-1, signal.SIGKILL)\n"},
        Hostile{"kills its process group", "import os, signal\nos.killpg(0, signal.SIGKILL)\n"},
        Hostile{"becomes root", "import os\nos.setuid(0)\nos.mount if hasattr(os, 'mount') else os.chroot('/')\n"},
        Hostile{"crashes", "import ctypes\nctypes.string_at(0)\n"},
        Hostile{"recurses", "def f(): return f()\nimport sys\nsys.setrecursionlimit(10**9)\nf()\n"},
        Hostile{"leaves a process behind",
                "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(3)\n    open('FOLDER/late', "
                "'w').write('x')\nos._exit(0)\n"}));

TEST(Sandbox, counts_none_but_its_own_processes) {
    if (sandbox() == nullptr) GTEST_SKIP() << "no sandbox here";
    std::vector<pid_t> others;  // of the user that programs run as; more than a sandbox may have
    for (int i = 0; i < 40; ++i) {
        const pid_t process = fork();
        if (process == 0) {
            constexpr uid_t nobody = 65534;
            if (geteuid() == 0 && setresuid(nobody, nobody, nobody) != 0) _exit(1);
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (;;) pause();
        }
        others.push_back(process);
    }
    const auto result = sandbox()->run("import os\nif os.fork() == 0:\n    os._exit(0)\nos.wait()\nprint('done')\n");
    for (const auto process : others) {
        kill(process, SIGKILL);
        waitpid(process, nullptr, 0);
    }
    EXPECT_EQ(result.output, "done\n");
}

TEST(Sandbox, runs_what_is_good) {
    if (sandbox() == nullptr) GTEST_SKIP() << "no sandbox here";
    EXPECT_TRUE(judge_solution(twice, good, *sandbox()).passed);
    const auto result =
        sandbox()->run("import os, sys\nprint(sorted(os.environ))\nprint(os.getcwd(), os.listdir('/tmp'))\n");
    EXPECT_EQ(result.code, 0) << result.output;
    EXPECT_THAT(result.output, HasSubstr("/tmp"));
}

}  // namespace
}  // namespace cerebellum
