// Programs that try to take more memory than a sandbox has, by every way that we know of.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <memory>
#include <sstream>
#include <string>

#include "cerebellum/core/error.h"
#include "cerebellum/evaluate/sandbox.h"

namespace cerebellum {
namespace {

constexpr std::uint64_t mib = 1ULL << 20;
constexpr std::uint64_t limit = 300 * mib;
constexpr std::uint64_t tolerance = 64 * mib;

const Sandbox* sandbox() {
    static const auto made = []() -> std::unique_ptr<Sandbox> {
        SandboxLimits limits;
        limits.memory_bytes = limit;
        limits.processes = 20;
        limits.wall_s = 20.0;
        try {
            return std::make_unique<Sandbox>(Sandbox::Isolation::full, limits);
        } catch (const Error&) {
            return nullptr;
        }
    }();
    return made.get();
}

struct Hog {
    const char* what;
    const char* code;  // report(bytes) says how much this process holds by now
};

void PrintTo(const Hog& hog, std::ostream* out) {
    *out << hog.what;
}

constexpr auto prologue = R"(
import ctypes, mmap, os, socket, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def report(held): os.write(1, b'%d %d\n' % (os.getpid(), held))
def fill(take, piece):
    held, kept = 0, []
    while True:
        try: kept.append(take(piece))
        except (OSError, MemoryError, ValueError): break
        held += piece
        report(held)
    time.sleep(3)
def memory(size):
    block = bytearray(size)
    for i in range(0, size, 4096): block[i] = 1
    return block
def file_in(folder):
    count = [0]
    def take(size):
        count[0] += 1
        with open('%s/f%d-%d' % (folder, os.getpid(), count[0]), 'wb', 0) as file:
            if file.write(b'x' * size) < size: raise OSError()
    return take
def together(body, n=18):
    for _ in range(n):
        try:
            if os.fork() == 0:
                body()
                os._exit(0)
        except OSError: pass
    time.sleep(8)
)";

class SlowHostileMemory : public ::testing::TestWithParam<Hog> {};

TEST_P(SlowHostileMemory, stays_within_the_limit) {
    if (sandbox() == nullptr) GTEST_SKIP() << "no sandbox here";
    const auto begun = std::chrono::steady_clock::now();
    const auto result = sandbox()->run(std::string(prologue) + GetParam().code);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begun;
    std::map<long, std::uint64_t> held;  // by process
    std::istringstream lines(result.output);
    for (std::string line; std::getline(lines, line);) {
        std::istringstream words(line);
        long process = 0;
        if (std::uint64_t bytes = 0; words >> process >> bytes) held[process] = std::max(held[process], bytes);
    }
    std::uint64_t total = 0;
    for (const auto& [process, bytes] : held) total += bytes;
    RecordProperty("held_mib", static_cast<int>(total / mib));
    fmt::print("{}: {} MiB held, {}\n", GetParam().what, total / mib, describe(result));
    EXPECT_LE(total, limit + tolerance) << GetParam().what;
    EXPECT_LT(seconds.count(), 30.0);
}

INSTANTIATE_TEST_SUITE_P(
    Ways, SlowHostileMemory,
    ::testing::Values(
        Hog{"its own memory", "fill(memory, 1 << 20)"},
        Hog{"many processes' own memory", "together(lambda: fill(memory, 1 << 18))"},
        Hog{"many processes' own memory at once", "together(lambda: fill(memory, 1 << 24))"},
        Hog{"many processes behind threads",
            "for _ in range(6):\n    t = threading.Thread(target=lambda: together(lambda: fill(memory, 1 << 18), 3)); "
            "t.start()\ntime.sleep(9)"},
        Hog{"processes without parents",
            "def orphan():\n    if os.fork() == 0:\n        os.setsid()\n        fill(memory, 1 << 18)\n    "
            "os._exit(0)\ntogether(orphan, 10)"},
        Hog{"files in /tmp", "fill(file_in('/tmp'), 1 << 20)"},
        Hog{"files in /dev/shm", "fill(file_in('/dev/shm'), 1 << 20)"},
        Hog{"files in /dev", "fill(file_in('/dev'), 1 << 20)"}, Hog{"files in /", "fill(file_in('/'), 1 << 20)"},
        Hog{"files and memory",
            "together(lambda: fill(memory, 1 << 18), 8) if os.fork() else fill(file_in('/tmp'), 1 << 18)"},
        Hog{"files that are deleted and held",
            "def take(size):\n    f = open('/tmp/x', 'wb', 0); os.unlink('/tmp/x')\n    if f.write(b'x' * size) < "
            "size: "
            "raise OSError()\n    return f\nfill(take, 1 << 21)"},
        Hog{"empty files",
            "n = 0\nwhile True:\n    try:\n        os.close(os.open('/tmp/%d' % n, os.O_CREAT))\n    except OSError:\n "
            "       "
            "break\n    n += 1\n    if n % 1000 == 0: report(n * 1024)\n"},
        Hog{"folders",
            "n = 0\nwhile True:\n    os.mkdir('/tmp/%d' % n)\n    n += 1\n    if n % 1000 == 0: report(n * 1024)\n"},
        Hog{"memfd",
            "def take(size):\n    f = os.memfd_create('a')\n    os.write(f, b'x' * size)\n    return f\nfill(take, 1 "
            "<< 22)"},
        Hog{"shared anonymous memory that its children touch",
            "def take(size):\n    m = mmap.mmap(-1, size)\n    if os.fork() == 0:\n        for i in range(0, size, "
            "4096): m[i] = "
            "1\n        os._exit(0)\n    os.wait()\n    return m\ntogether(lambda: fill(take, 1 << 22))"},
        Hog{"mapped files",
            "def take(size):\n    f = open('/tmp/m%d-%d' % (os.getpid(), time.time_ns()), 'w+b'); f.truncate(size)\n   "
            " m = "
            "mmap.mmap(f.fileno(), size)\n    m[:] = b'x' * size\n    return m\nfill(take, 1 << 20)"},
        Hog{"System V memory",
            "libc.shmat.restype = ctypes.c_void_p\ndef take(size):\n    i = libc.shmget(0, size, 0o1600)\n    if i < "
            "0: raise "
            "OSError()\n    ctypes.memset(libc.shmat(i, None, 0), 1, size)\nfill(take, 1 << 22)"},
        Hog{"pipes",
            "def take(size):\n    r, w = os.pipe(); os.set_blocking(w, False)\n    n = 0\n    try:\n        while "
            "True: n += "
            "os.write(w, b'x' * 4096)\n    except BlockingIOError: pass\n    if n < size: raise OSError()\n    return "
            "r, w\n"
            "together(lambda: fill(take, 1 << 16))"},
        Hog{"sockets",
            "def take(size):\n    a, b = socket.socketpair()\n    for s in (a, b):\n        s.setblocking(False)\n     "
            "   try:\n   "
            "         while True: s.send(b'x' * 4096)\n        except BlockingIOError: pass\n    return a, b\n"
            "together(lambda: fill(take, 400000))"},
        Hog{"swapping with its children's copies",
            "m = memory(200 << 20)\nreport(200 << 20)\ndef dirty():\n    for i in range(0, len(m), 4096):\n        "
            "m[i] = 2\n        "
            "if i % (1 << 20) == 0: report(i)\n    time.sleep(5)\ntogether(dirty, 10)"},
        Hog{"a sandbox in the sandbox",
            "subprocess.run(['bwrap', '--ro-bind', '/', '/', '--tmpfs', '/tmp', 'python3', '-c', 'import os\\nn = "
            "0\\nwhile True:\\n "
            "open(\"/tmp/%d\" % n, \"wb\").write(b\"x\" * 2**20)\\n n += 1\\n os.write(1, b\"1 %d\\\\n\" % (n << "
            "20))'])"},
        Hog{"a fork bomb",
            "while True:\n    try:\n        if os.fork() == 0: m = memory(1 << 22); report(1 << 22)\n    except "
            "(OSError, MemoryError): pass\n"}));

}  // namespace
}  // namespace cerebellum
