#pragma once

#include <filesystem>
#include <memory>
#include <span>

#include "cerebellum/core/channel_scaling.h"
#include "cerebellum/pipeline/scaling_search.h"
#include "cerebellum/pipeline/session.h"

namespace cerebellum {

/// search_scaling(), or what the journal holds of an earlier one.
ScalingSearch find_scaling(Session& session, Progress& progress);

/// A copy of a session's source whose channels are scaled, and a session that measures it on the same text, with a
/// journal of its own. Both lie beside the original's journal, JOURNAL.scaled-HASH.gguf and .db; a run that was
/// interrupted finds them again.
class ScaledModel {
  public:
    /// Writes the copy where it is not there yet. The original is at rest from then on. Throws as Session and
    /// build_gguf do.
    ScaledModel(Session& original, std::span<const ChannelScaling> scalings, Progress& progress);

    Session& session() { return *session_; }
    /// The copy is as large as the source and can be made again: away with it when all is done.
    void discard_file();

  private:
    std::filesystem::path file_;
    std::unique_ptr<Session> session_;
};

}  // namespace cerebellum
