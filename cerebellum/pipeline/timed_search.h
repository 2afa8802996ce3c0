#pragma once

#include <nlohmann/json_fwd.hpp>

#include "cerebellum/pipeline/aim.h"
#include "cerebellum/pipeline/search.h"
#include "cerebellum/pipeline/session.h"

namespace cerebellum {

/// A search by replays, and what it took.
struct TimedSearch {
    SearchResult result;
    double seconds = 0.0;  // it lasted
    std::size_t explore_windows = 0, confirm_windows = 0;
    Estimate gain;  // KLD on the test text without the search minus with it, paired by window
};

/// Throws UsageError where the text is too short for a search.
void check_search_text(Session& session);

/// search_recipe() with whole-recipe replays, for about so many seconds: a trial that is not expected to end in time is
/// not begun. What the journal holds takes no time, so that the same search again goes on where the time was up.
TimedSearch search_for(Session& session, const StartingRecipe& start, double seconds, const Aim& aim,
                       Progress& progress);

/// What was accepted, for a recipe's provenance.
std::map<std::string, std::string> search_provenance(const SearchResult& result);

nlohmann::json to_json(const TimedSearch& search);

}  // namespace cerebellum
