// The group of a build with MPI; without it, group_alone.cpp takes its place.
#include <mpi.h>

#include <chrono>
#include <cstdlib>
#include <limits>
#include <list>
#include <thread>
#include <vector>

#include "cerebellum/core/error.h"
#include "cerebellum/distribute/group.h"

namespace cerebellum {

namespace {

constexpr int tag_message = 1, tag_goodbye = 2;

class MpiGroup final : public Group {
  public:
    MpiGroup() {
        int provided = 0;
        if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS ||
            provided < MPI_THREAD_FUNNELED)
            throw Error("MPI cannot be started with threads; check the MPI installation");
        // A rank that is gone must not end the others where the runtime lets them live (mpirun --enable-recovery).
        MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
        MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
        MPI_Comm_size(MPI_COMM_WORLD, &size_);
        MPI_Comm here = MPI_COMM_NULL;
        MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &here);
        MPI_Comm_rank(here, &local_rank_);
        MPI_Comm_size(here, &local_size_);
        MPI_Comm_free(&here);
    }

    ~MpiGroup() override {
        if (all_here()) {
            MPI_Finalize();
            return;
        }
        // MPI_Finalize would wait for those that are gone for ever. What there was to do has been done.
        if (rank_ == 0) MPI_Abort(MPI_COMM_WORLD, EXIT_SUCCESS);
        std::_Exit(EXIT_SUCCESS);
    }

    int rank() const override { return rank_; }
    int size() const override { return size_; }
    int local_rank() const override { return local_rank_; }
    int local_size() const override { return local_size_; }

    bool send(int to, std::string_view bytes) override {
        if (bytes.size() > static_cast<std::size_t>(std::numeric_limits<int>::max()))
            throw Error("a message to another rank has more than 2 GiB; measure on fewer --tokens");
        return post(to, tag_message, std::string(bytes));
    }

    std::optional<Message> poll() override {
        advance();
        int waiting = 0;
        MPI_Status status;
        if (MPI_Iprobe(MPI_ANY_SOURCE, tag_message, MPI_COMM_WORLD, &waiting, &status) != MPI_SUCCESS || waiting == 0)
            return std::nullopt;
        int size = 0;
        MPI_Get_count(&status, MPI_BYTE, &size);
        Message message;
        message.from = status.MPI_SOURCE;
        message.bytes.resize(static_cast<std::size_t>(size));
        if (MPI_Recv(message.bytes.data(), size, MPI_BYTE, status.MPI_SOURCE, tag_message, MPI_COMM_WORLD,
                     MPI_STATUS_IGNORE) != MPI_SUCCESS)
            return std::nullopt;
        return message;
    }

    void abandon(int exit_code) override {
        MPI_Abort(MPI_COMM_WORLD, exit_code);
        std::_Exit(exit_code);
    }

  private:
    struct Sending {
        std::string bytes;
        MPI_Request request = MPI_REQUEST_NULL;
    };

    bool post(int to, int tag, std::string bytes) {
        advance();
        auto& sending = sending_.emplace_back();
        sending.bytes = std::move(bytes);
        if (MPI_Isend(sending.bytes.data(), static_cast<int>(sending.bytes.size()), MPI_BYTE, to, tag, MPI_COMM_WORLD,
                      &sending.request) == MPI_SUCCESS)
            return true;
        sending_.pop_back();
        return false;
    }

    /// Lets go of what has been sent.
    void advance() {
        std::erase_if(sending_, [](Sending& sending) {
            int sent = 0;
            return MPI_Test(&sending.request, &sent, MPI_STATUS_IGNORE) != MPI_SUCCESS || sent != 0;
        });
    }

    /// Whether all ranks have come to their end, as far as can be told in some seconds: everybody tells rank 0, and
    /// rank 0 tells everybody.
    bool all_here() {
        using Clock = std::chrono::steady_clock;
        const auto deadline = Clock::now() + std::chrono::seconds(rank_ == 0 ? 20 : 60);
        const auto hear = [&](int n) {
            std::vector<bool> heard(static_cast<std::size_t>(size_), false);
            while (n > 0 && Clock::now() < deadline) {
                advance();
                int waiting = 0;
                MPI_Status status;
                if (MPI_Iprobe(MPI_ANY_SOURCE, tag_goodbye, MPI_COMM_WORLD, &waiting, &status) == MPI_SUCCESS &&
                    waiting != 0) {
                    MPI_Recv(nullptr, 0, MPI_BYTE, status.MPI_SOURCE, tag_goodbye, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
                    if (!heard[static_cast<std::size_t>(status.MPI_SOURCE)]) --n;
                    heard[static_cast<std::size_t>(status.MPI_SOURCE)] = true;
                } else {
                    std::this_thread::sleep_for(std::chrono::milliseconds(1));
                }
            }
            return n == 0;
        };
        if (rank_ > 0) return post(0, tag_goodbye, {}) && hear(1) && sent();
        if (!hear(size_ - 1)) return false;
        for (int other = 1; other < size_; ++other) post(other, tag_goodbye, {});
        return sent();
    }

    bool sent() {
        for (int i = 0; i < 5000 && !sending_.empty(); ++i) {
            advance();
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        return sending_.empty();
    }

    int rank_ = 0;
    int size_ = 1;
    int local_rank_ = 0;
    int local_size_ = 1;
    std::list<Sending> sending_;  // messages under way; their memory must stay where it is
};

}  // namespace

std::unique_ptr<Group> Group::join() {
    // Started by hand, MPI would only cost time.
    if (launched_processes() < 2) return std::make_unique<LoneGroup>();
    return std::make_unique<MpiGroup>();
}

}  // namespace cerebellum
