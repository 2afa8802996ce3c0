#include "cerebellum/pipeline/unusable.h"

#include <fmt/format.h>

#include <map>
#include <set>
#include <utility>

#include "cerebellum/core/listing.h"

namespace cerebellum {

std::vector<std::string> describe_unusable(const Journal& journal) {
    std::map<std::pair<std::string, std::string>, std::set<std::string>> recorded;  // by type and reason
    std::map<std::string, std::set<std::string>> not_numbers;
    std::set<std::string> without;
    for (const auto& figure : journal.unusable()) {
        // Reasons that name the tensor are another one each.
        auto reason = figure.reason;
        for (std::size_t at = 0; (at = reason.find(figure.tensor, at)) != std::string::npos;)
            reason.replace(at, figure.tensor.size(), "it");
        recorded[{figure.type, reason}].insert(figure.tensor);
        without.insert(figure.tensor);
    }
    for (const auto& figure : journal.not_numbers()) {
        not_numbers[figure.type].insert(figure.tensor);
        without.insert(figure.tensor);
    }
    for (const auto& m : journal.measurements()) without.erase(m.tensor);
    std::vector<std::string> lines;
    for (const auto& [key, tensors] : recorded)
        lines.push_back(fmt::format("{} is left out for {} tensor{} without a usable figure ({}): {}", key.first,
                                    tensors.size(), tensors.size() == 1 ? "" : "s", first_few(tensors), key.second));
    for (const auto& [type, tensors] : not_numbers)
        lines.push_back(
            fmt::format("{} is left out for {} tensor{} whose figure is no number ({}): 'cerebellum ablate' measures "
                        "it again",
                        type, tensors.size(), tensors.size() == 1 ? "" : "s", first_few(tensors)));
    if (!without.empty())
        lines.push_back(fmt::format("{} keep{} the source's type: none of the others has a usable figure",
                                    first_few(without), without.size() == 1 ? "s" : ""));
    return lines;
}

void warn_of_unusable(const Journal& journal, Progress& progress) {
    for (const auto& line : describe_unusable(journal)) progress.warn(line);
}

}  // namespace cerebellum
