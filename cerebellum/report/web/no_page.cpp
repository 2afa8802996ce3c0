#include "cerebellum/core/error.h"
#include "cerebellum/report/html_report.h"

namespace cerebellum {

std::string_view report_page() {
    throw Error("this build has no report page; build with npm and CEREBELLUM_REPORT=ON (the default)");
}

}  // namespace cerebellum
