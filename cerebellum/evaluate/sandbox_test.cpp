#include "cerebellum/evaluate/sandbox.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <memory>
#include <thread>

#include "cerebellum/core/error.h"
#include "cerebellum/core/proc_files.h"
#include "cerebellum/core/progress.h"

namespace cerebellum {
namespace {

using ::testing::HasSubstr;
using End = SandboxResult::End;

std::unique_ptr<Sandbox> make(Sandbox::Isolation isolation, double wall_s) {
    SandboxLimits limits;
    limits.wall_s = wall_s;
    limits.memory_bytes = 300ULL << 20;
    try {
        return std::make_unique<Sandbox>(isolation, limits);
    } catch (const Error&) {
        return nullptr;
    }
}

/// Tries every way to memory that no limit would count, and out of the sandbox; prints those that are open.
constexpr auto explorer = R"(
import ctypes, fcntl, mmap, os, socket, subprocess
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p

def open_way(name, attempt):
    try:
        if attempt() not in (False, -1, ctypes.c_void_p(-1).value): print(name, flush=True)
    except OSError:
        pass

def write(folder):
    with open(folder + '/new', 'wb') as file: file.write(b'x')

for folder in ('/', '/dev', '/usr', '/bin', '/lib', '/etc', '/var', '/run', '/home', '/proc', '/dev/pts', '/mnt', '/opt'):
    open_way('writes to ' + folder, lambda: write(folder))
open_way('memfd_create', lambda: os.memfd_create('a'))
open_way('shmget', lambda: libc.shmget(0, 4096, 0o1600))
open_way('msgget', lambda: libc.msgget(0, 0o1600))
open_way('semget', lambda: libc.semget(0, 1, 0o1600))
open_way('mq_open', lambda: libc.mq_open(b'/a', 0o102, 0o600, None))
open_way('shared anonymous memory', lambda: mmap.mmap(-1, 4096) is not None)
open_way('/dev/zero', lambda: os.open('/dev/zero', os.O_RDWR))
open_way('a large pipe', lambda: fcntl.fcntl(os.pipe()[1], 1031, 1 << 20))
open_way('vmsplice', lambda: libc.vmsplice(os.pipe()[1], None, 0, 0))
open_way('huge pages', lambda: libc.prctl(41, 0, 0, 0, 0))
open_way('socket', lambda: socket.socket() is not None)
open_way('unix socket', lambda: socket.socket(socket.AF_UNIX) is not None)
open_way('inotify', lambda: libc.inotify_init())
for name, flag in (('user', 0x10000000), ('mount', 0x20000), ('network', 0x40000000), ('process', 0x20000000)):
    open_way('unshare ' + name, lambda: libc.unshare(flag))
    open_way('clone ' + name, lambda: libc.syscall(56 if os.uname().machine == 'x86_64' else 220, flag | 17, 0, 0, 0, 0))
open_way('mount', lambda: libc.mount(b'none', b'/tmp', b'tmpfs', 0, None))
open_way('chroot', lambda: libc.chroot(b'/tmp'))
open_way('ptrace', lambda: libc.ptrace(0, 0, None, None))
open_way('keyctl', lambda: libc.syscall(248 if os.uname().machine == 'x86_64' else 217, b'user', b'a', b'b', 1, -2))
open_way('bpf', lambda: libc.syscall(321 if os.uname().machine == 'x86_64' else 280, 0, None, 0))
open_way('io_uring', lambda: libc.syscall(425, 1, ctypes.create_string_buffer(256)))
open_way('perf_event_open', lambda: libc.syscall(298 if os.uname().machine == 'x86_64' else 241, ctypes.create_string_buffer(128), 0, -1, -1, 0))
open_way('another processor', lambda: os.sched_setaffinity(0, {0, 1}) is None)
open_way('a sandbox in the sandbox',
         lambda: subprocess.run(['bwrap', '--ro-bind', '/', '/', '--tmpfs', '/tmp', 'true'], stderr=subprocess.DEVNULL).returncode == 0)
print('all tried')
)";

TEST(Sandbox, leaves_no_way_open_that_no_limit_counts) {
    const auto sandbox = make(Sandbox::Isolation::full, 120.0);
    if (!sandbox) GTEST_SKIP() << "no sandbox here";
    const auto result = sandbox->run(explorer);
    EXPECT_EQ(result.output, "all tried\n") << describe(result);
}

TEST(Sandbox, lets_programs_do_what_they_need) {
    const auto sandbox = make(Sandbox::Isolation::full, 120.0);
    if (!sandbox) GTEST_SKIP() << "no sandbox here";
    const auto result = sandbox->run(R"(
import asyncio, multiprocessing, os, random, socket, subprocess, tempfile, threading
with tempfile.TemporaryFile() as file: file.write(b'x' * 1000)
open('/dev/null', 'w').write('x')
open('/dev/shm/x', 'w').write('x')
assert len(os.urandom(8)) == 8 and random.SystemRandom().random() < 1
assert subprocess.run(['echo', 'a'], capture_output=True).stdout == b'a\n'
thread = threading.Thread(target=lambda: None); thread.start(); thread.join()
async def wait(): await asyncio.sleep(0.01)
asyncio.run(wait())
with multiprocessing.Pool(2) as pool: assert pool.map(abs, [-1, -2]) == [1, 2]
x = bytearray(20 << 20)
print('done')
)");
    EXPECT_EQ(result.output, "done\n") << describe(result);
    EXPECT_EQ(result.code, 0);
}

/// Processes of the whole machine that have this in their command line.
int processes_with(const std::string& text) {
    int count = 0;
    for (const pid_t process : all_processes())
        count += proc_text(fmt::format("/proc/{}/cmdline", process)).find(text) != std::string::npos ? 1 : 0;
    return count;
}

class Leftovers : public ::testing::TestWithParam<Sandbox::Isolation> {};

TEST_P(Leftovers, are_none_when_a_run_has_ended) {
    const auto sandbox = make(GetParam(), 5.0);
    if (!sandbox) GTEST_SKIP() << "no sandbox here";
    const auto mark = "left-behind-" + std::to_string(getpid());
    // Children that leave the process group and outlive their parents, some of them started by a thread.
    const std::string program = R"(
import os, subprocess, threading, time
def leave():
    for i in range(4):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0: os.execlp('sleep', 'sleep', '300', 'MARK') if i % 2 else os.execlp('python3', 'python3', '-c', 'import time; time.sleep(300) # MARK')
            os._exit(0)
thread = threading.Thread(target=leave); thread.start(); thread.join()
leave()
time.sleep(0.5)
)";
    auto code = program;
    for (std::size_t at; (at = code.find("MARK")) != std::string::npos;) code.replace(at, 4, mark);
    sandbox->run(code);
    EXPECT_EQ(processes_with(mark), 0) << "behind a program that ended";
    EXPECT_EQ(sandbox->run(code + "\ntime.sleep(300)\n").end, End::out_of_time);
    EXPECT_EQ(processes_with(mark), 0) << "behind one that was killed";
}

INSTANTIATE_TEST_SUITE_P(Isolation, Leftovers,
                         ::testing::Values(Sandbox::Isolation::full, Sandbox::Isolation::limits_only),
                         [](const auto& test) {
                             return test.param == Sandbox::Isolation::full ? "full" : "limits_only";
                         });

TEST(Sandbox, ends_within_a_second_when_the_user_asks_to_stop) {
    const auto sandbox = make(Sandbox::Isolation::full, 120.0);
    if (!sandbox) GTEST_SKIP() << "no sandbox here";
    std::atomic<std::chrono::steady_clock::time_point> asked{};
    std::jthread user([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(500));
        asked = std::chrono::steady_clock::now();
        Progress::stop_requested = true;
    });
    EXPECT_THROW(sandbox->run("import time\ntime.sleep(300)\n"), Interrupted);
    EXPECT_LT(std::chrono::steady_clock::now() - asked.load(), std::chrono::seconds(1));
    user.join();
    Progress::stop_requested = false;
}

}  // namespace
}  // namespace cerebellum
