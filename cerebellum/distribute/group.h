#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace cerebellum {

/// The processes that work on one job together: those that mpirun started, or this one alone. Rank 0 has the journal
/// and speaks to the user. Messages between two ranks come in the order in which they were sent. Not thread-safe: only
/// the thread that joined may use it.
class Group {
  public:
    /// Throws Error where mpirun started several processes and this build is without MPI.
    static std::unique_ptr<Group> join();
    /// Takes leave of the others, without waiting for those that are gone.
    virtual ~Group() = default;
    Group(const Group&) = delete;
    Group& operator=(const Group&) = delete;

    virtual int rank() const = 0;
    virtual int size() const = 0;
    /// Among the ranks on the same machine.
    virtual int local_rank() const = 0;
    virtual int local_size() const = 0;

    struct Message {
        int from = 0;
        std::string bytes;
    };
    /// Does not wait for the receiver. False where the receiver is known to be gone.
    virtual bool send(int to, std::string_view bytes) = 0;
    /// A message that has come in, none where there is none. Does not wait; what is waiting to be sent gets on.
    virtual std::optional<Message> poll() = 0;
    /// Ends the processes of all ranks, at once and with this exit code.
    [[noreturn]] virtual void abandon(int exit_code) = 0;

  protected:
    Group() = default;
};

/// This process alone.
class LoneGroup final : public Group {
  public:
    int rank() const override { return 0; }
    int size() const override { return 1; }
    int local_rank() const override { return 0; }
    int local_size() const override { return 1; }
    bool send(int, std::string_view) override { return false; }
    std::optional<Message> poll() override { return std::nullopt; }
    [[noreturn]] void abandon(int exit_code) override;
};

/// How many processes mpirun or srun says that it started; 1 where neither did.
int launched_processes();

}  // namespace cerebellum
