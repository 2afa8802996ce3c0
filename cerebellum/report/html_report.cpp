#include "cerebellum/report/html_report.h"

#include <nlohmann/json.hpp>

#include "cerebellum/core/error.h"
#include "cerebellum/core/json_text.h"

namespace cerebellum {

namespace {

/// In HTML text.
std::string escaped(std::string_view text) {
    std::string result;
    for (const char c : text) switch (c) {
            case '&':
                result += "&amp;";
                break;
            case '<':
                result += "&lt;";
                break;
            case '>':
                result += "&gt;";
                break;
            default:
                result += c;
        }
    return result;
}

/// JSON that nothing in it can end the script element that it stands in.
std::string inside_script(const nlohmann::json& document) {
    // File names need not be UTF-8.
    const auto text = json_to_text(document);
    std::string result;
    result.reserve(text.size());
    for (const char c : text)
        if (c == '<')
            result += "\\u003c";
        else
            result += c;
    return result;
}

}  // namespace

bool has_report_page() {
    try {
        report_page();
        return true;
    } catch (const Error&) {
        return false;
    }
}

std::string html_report(const nlohmann::json& document, std::string_view title) {
    constexpr std::string_view title_mark = "@REPORT_TITLE@", document_mark = "@REPORT_DOCUMENT@";
    const auto page = report_page();
    const auto title_at = page.find(title_mark), document_at = page.find(document_mark);
    if (title_at == page.npos || document_at == page.npos || document_at < title_at)
        throw Error("the report's page has no place for the document; build Cerebellum again from its sources");
    std::string result(page.substr(0, title_at));
    result += escaped(title);
    const auto rest = title_at + title_mark.size();
    result += page.substr(rest, document_at - rest);
    result += inside_script(document);
    result += page.substr(document_at + document_mark.size());
    return result;
}

}  // namespace cerebellum
