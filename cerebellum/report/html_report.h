#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace cerebellum {

/// The page without anything in it: one file of HTML, styles and scripts. Throws Error in a build that left it out
/// (CEREBELLUM_REPORT=OFF).
std::string_view report_page();

/// Whether this build has the page.
bool has_report_page();

/// The page with this document in it, self-contained: it opens from a disk without a network. `title` is plain text.
std::string html_report(const nlohmann::json& document, std::string_view title);

}  // namespace cerebellum
