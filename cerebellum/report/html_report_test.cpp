#include "cerebellum/report/html_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "cerebellum/core/error.h"

namespace cerebellum {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class HtmlReport : public ::testing::Test {
  protected:
    void SetUp() override {
        try {
            report_page();
        } catch (const Error& error) {
            GTEST_SKIP() << error.what();
        }
    }
};

TEST_F(HtmlReport, holds_the_document_whatever_is_in_it) {
    const nlohmann::json document = {{"name", "</script><!-- & 'x' \"y\" \\ ü \xff"}, {"number", 0.1 + 0.2}};
    const auto page = html_report(document, "a<b & c");
    EXPECT_THAT(page, HasSubstr("<title>a&lt;b &amp; c</title>"));
    const std::string begin = "<script type=\"application/json\" id=\"report-document\">";
    const auto from = page.find(begin) + begin.size();
    ASSERT_NE(page.find(begin), page.npos);
    const auto text = page.substr(from, page.find("</script>", from) - from);
    EXPECT_THAT(text, Not(HasSubstr("<")));
    const auto read = nlohmann::json::parse(text);
    EXPECT_EQ(read["number"].get<double>(), 0.1 + 0.2);
    EXPECT_THAT(read["name"].get<std::string>(), HasSubstr("</script><!-- & 'x' \"y\" \\ ü"));
}

TEST_F(HtmlReport, needs_nothing_from_elsewhere) {
    const auto page = std::string(report_page());
    EXPECT_LT(page.size(), 1'500'000U);
    EXPECT_THAT(page, HasSubstr("default-src 'none'"));
    for (const auto* outside : {"src=\"http", "href=\"http", "@import", "url(http"})
        EXPECT_THAT(page, Not(HasSubstr(outside)));
    // The licences of what is bundled.
    EXPECT_THAT(page, HasSubstr("@observablehq/plot"));
    EXPECT_THAT(page, HasSubstr("Permission to use, copy, modify"));
}

}  // namespace
}  // namespace cerebellum
