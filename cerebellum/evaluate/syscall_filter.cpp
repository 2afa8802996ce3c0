#include "cerebellum/evaluate/syscall_filter.h"

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace cerebellum {

namespace {

#if defined(__x86_64__)
constexpr std::uint32_t this_architecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr std::uint32_t this_architecture = AUDIT_ARCH_AARCH64;
#else
constexpr std::uint32_t this_architecture = 0;
#endif

/// Not every architecture has each, nor every system's header a name for it.
const std::vector<int> refused = {
    // Memory that no limit of a process counts.
    SYS_memfd_create,
    SYS_shmget,
    SYS_shmat,
    SYS_shmctl,
    SYS_semget,
    SYS_msgget,
    SYS_msgsnd,
    SYS_mq_open,
    SYS_vmsplice,
    SYS_splice,
    SYS_tee,
    SYS_io_setup,
    SYS_inotify_init1,
    SYS_inotify_add_watch,
    SYS_fanotify_init,
    SYS_fanotify_mark,
    SYS_socket,
    SYS_setsockopt,
    SYS_sendmsg,
    SYS_sendmmsg,
    SYS_mbind,
    SYS_set_mempolicy,
    SYS_migrate_pages,
    SYS_move_pages,
    // Namespaces and mounts.
    SYS_unshare,
    SYS_setns,
    SYS_mount,
    SYS_umount2,
    SYS_pivot_root,
    SYS_chroot,
    SYS_swapon,
    SYS_swapoff,
    SYS_open_by_handle_at,
    SYS_name_to_handle_at,
    SYS_quotactl,
    // Other processes, and the processor that this one was given.
    SYS_ptrace,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_kcmp,
    SYS_sched_setaffinity,
    SYS_personality,
    // The kernel itself.
    SYS_keyctl,
    SYS_add_key,
    SYS_request_key,
    SYS_bpf,
    SYS_perf_event_open,
    SYS_userfaultfd,
    SYS_init_module,
    SYS_finit_module,
    SYS_delete_module,
    SYS_kexec_load,
    SYS_reboot,
    SYS_acct,
    SYS_syslog,
    SYS_settimeofday,
    SYS_clock_settime,
    SYS_adjtimex,
    SYS_clock_adjtime,
    SYS_sethostname,
    SYS_setdomainname,
    SYS_vhangup,
#ifdef SYS_inotify_init
    SYS_inotify_init,
#endif
#ifdef SYS_iopl
    SYS_iopl,
    SYS_ioperm,
    SYS_modify_ldt,
#endif
#ifdef SYS_kexec_file_load
    SYS_kexec_file_load,
#endif
#ifdef SYS_io_uring_setup
    SYS_io_uring_setup,
    SYS_io_uring_enter,
    SYS_io_uring_register,
#endif
#ifdef SYS_move_mount
    SYS_move_mount,
    SYS_open_tree,
    SYS_fsopen,
    SYS_fsconfig,
    SYS_fsmount,
    SYS_fspick,
#endif
#ifdef SYS_mount_setattr
    SYS_mount_setattr,
#endif
#ifdef SYS_pidfd_getfd
    SYS_pidfd_getfd,
#endif
#ifdef SYS_process_madvise
    SYS_process_madvise,
#endif
#ifdef SYS_memfd_secret
    SYS_memfd_secret,
#endif
#ifdef SYS_quotactl_fd
    SYS_quotactl_fd,
#endif
};

/// The programs that BPF runs on struct seccomp_data, put together call by call. Between calls its accumulator holds
/// the number of the system call.
class Filter {
  public:
    Filter() {
        load(offsetof(seccomp_data, arch));
        add(BPF_JMP | BPF_JEQ | BPF_K, this_architecture, 1, 0);
        give(SECCOMP_RET_KILL_PROCESS);
        load(offsetof(seccomp_data, nr));
#ifdef __x86_64__
        constexpr std::uint32_t x32 = 0x40000000;  // the same calls under other numbers
        add(BPF_JMP | BPF_JGE | BPF_K, x32, 0, 1);
        give(SECCOMP_RET_KILL_PROCESS);
#endif
    }
    void refuse(int call, int problem = EPERM) {
        add(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(call), 0, 1);
        give(SECCOMP_RET_ERRNO | static_cast<std::uint32_t>(problem));
    }
    /// Where any of the bits is set in the argument.
    void refuse_any(int call, int argument, std::uint32_t bits) {
        add(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(call), 0, 4);
        load(argument_at(argument));
        add(BPF_JMP | BPF_JSET | BPF_K, bits, 0, 1);
        give(SECCOMP_RET_ERRNO | EPERM);
        give(SECCOMP_RET_ALLOW);
    }
    /// Where the argument's bits of the mask have this value.
    void refuse_equal(int call, int argument, std::uint32_t mask, std::uint32_t value) {
        add(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(call), 0, 5);
        load(argument_at(argument));
        add(BPF_ALU | BPF_AND | BPF_K, mask, 0, 0);
        add(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1);
        give(SECCOMP_RET_ERRNO | EPERM);
        give(SECCOMP_RET_ALLOW);
    }
    std::string finish() {
        give(SECCOMP_RET_ALLOW);
        return {reinterpret_cast<const char*>(code_.data()), code_.size() * sizeof(sock_filter)};
    }

  private:
    static std::uint32_t argument_at(int argument) {  // its lower half: both architectures are little-endian
        return static_cast<std::uint32_t>(offsetof(seccomp_data, args) +
                                          sizeof(std::uint64_t) * static_cast<std::size_t>(argument));
    }
    void add(int code, std::uint32_t value, std::uint8_t if_true, std::uint8_t if_false) {
        code_.push_back({static_cast<std::uint16_t>(code), if_true, if_false, value});
    }
    void load(std::size_t offset) {
        add(BPF_LD | BPF_W | BPF_ABS, static_cast<std::uint32_t>(offset), 0, 0);
    }
    void give(std::uint32_t verdict) {
        add(BPF_RET | BPF_K, verdict, 0, 0);
    }

    std::vector<sock_filter> code_;
};

}  // namespace

std::string syscall_filter() {
    if (this_architecture == 0) return "";
    constexpr std::uint32_t new_namespaces =
        CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;
    constexpr std::uint32_t shared_memory = MAP_SHARED | MAP_ANONYMOUS;
    constexpr std::uint32_t whole = 0xFFFFFFFF;
    Filter filter;
    for (const int call : refused) filter.refuse(call);
    // A filter cannot look at what clone3 is given; without it the C library takes clone.
    filter.refuse(435, ENOSYS);
    filter.refuse_any(SYS_clone, 0, new_namespaces);
    // Pages of a shared mapping stay when no process has them mapped in, and then no process is charged for them.
    filter.refuse_equal(SYS_mmap, 3, shared_memory, shared_memory);
    filter.refuse_equal(SYS_fcntl, 1, whole, F_SETPIPE_SZ);
    filter.refuse_equal(SYS_prctl, 0, whole, PR_SET_THP_DISABLE);
    return filter.finish();
}

}  // namespace cerebellum
