#include "cerebellum/core/processor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cerebellum/core/error.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(Processor, NamesWhatIsMissingAndNothingElse) {
    const InstructionSet sets[] = {
        {"used", true, true}, {"spare", false, true}, {"unused", false, false}, {"lacking", true, false}};
    try {
        require_instruction_sets(sets);
        FAIL() << "accepted";
    } catch (const Error& error) {
        EXPECT_THAT(error.what(), AllOf(HasSubstr("(lacking)"), Not(HasSubstr("used")), Not(HasSubstr("spare"))));
    }
}

TEST(Processor, ThisBuildRunsHere) {
    EXPECT_NO_THROW(require_instruction_sets(instruction_sets()));
}

}  // namespace
}  // namespace cerebellum
