#include "cerebellum/core/list_lines.h"

namespace cerebellum {

std::vector<ListLine> list_lines(std::string_view content) {
    constexpr std::string_view blanks = " \t\r\v\f";
    std::vector<ListLine> lines;
    for (int number = 1; !content.empty(); ++number) {
        const auto end = content.find('\n');
        auto line = content.substr(0, end);
        content.remove_prefix(end == std::string_view::npos ? content.size() : end + 1);
        for (auto at = line.find('#'); at != std::string_view::npos; at = line.find('#', at + 1))
            if (at == 0 || blanks.find(line[at - 1]) != std::string_view::npos) line = line.substr(0, at);
        const auto first = line.find_first_not_of(blanks);
        if (first == std::string_view::npos) continue;
        lines.push_back({number, std::string(line.substr(first, line.find_last_not_of(blanks) + 1 - first))});
    }
    return lines;
}

}  // namespace cerebellum
