#include "cerebellum/evaluate/answer_parser.h"

#include <gtest/gtest.h>

namespace cerebellum {
namespace {

const std::vector<std::string> cities = {"Rome", "Paris", "New York", "York"};

TEST(ParseChoice, finds_the_answer_however_it_is_said) {
    for (const auto* reply : {"B",
                              " b ",
                              "(B)",
                              "B.",
                              "B)",
                              "B) Paris",
                              "B. Paris",
                              "**B**",
                              "B: Paris",
                              "The answer is B.",
                              "The answer is (B)",
                              "Answer: B",
                              "The correct answer is: **B) Paris**",
                              "the correct option is B because it is.",
                              "\\boxed{B}",
                              "$\\boxed{\\text{B}}$",
                              "Answer: **(B)**",
                              "Paris",
                              "paris.",
                              "It must be Paris, of course.",
                              "I would choose option B",
                              "Let us see.\n\nB",
                              "Rome is wrong (A is not it). The answer is B",
                              "[B]",
                              "2",
                              "B\nbecause it is the capital",
                              "`B`",
                              "Choice B",
                              "The answer should be B.",
                              "Option A looks right at first, but the correct answer is B."})
        EXPECT_EQ(parse_choice(reply, cities), 1) << reply;
}

TEST(ParseChoice, looks_behind_the_reasoning) {
    EXPECT_EQ(parse_choice("<think>The answer is A. Or A?</think>\n\nB", cities), 1);
    EXPECT_EQ(parse_choice("The answer is A</think>The answer is B", cities), 1);
    EXPECT_EQ(parse_choice("<think>The answer is A", cities), std::nullopt);  // cut off while thinking
    EXPECT_EQ(parse_choice("<think></think>C", cities), 2);
}

TEST(ParseChoice, does_not_guess) {
    for (const auto* reply : {"", " \n\t", "I cannot answer this.", "A city in France.", "E", "(A) or (B)",
                              "Rome or Paris", "All of them", "7"})
        EXPECT_EQ(parse_choice(reply, cities), std::nullopt) << reply;
}

TEST(ParseChoice, knows_numbers_from_choices_that_are_numbers) {
    EXPECT_EQ(parse_choice("2", {"4", "6", "2", "8"}), 2);
    EXPECT_EQ(parse_choice("3", {"14", "16", "12", "18"}), 2);
    EXPECT_EQ(parse_choice("3.", cities), 2);
}

TEST(ParseChoice, prefers_the_longer_of_two_texts) {
    EXPECT_EQ(parse_choice("That is New York", cities), 2);
    EXPECT_EQ(parse_choice("York", cities), 3);
}

TEST(ParseChoice, ends_at_a_whole_dash) {
    EXPECT_EQ(parse_choice("B – Paris, or so", cities), 1);
    EXPECT_EQ(parse_choice("B — Paris, or so", cities), 1);
    EXPECT_EQ(parse_choice("A “city” of some kind", cities),
              std::nullopt);  // a quotation mark begins with the same bytes
}

/// std::regex took a frame of the stack for each character: 26 kB of blanks ended the program.
TEST(ParseChoice, reads_replies_of_any_length) {
    const auto repeated = [](std::string_view piece, std::size_t times) {
        std::string text;
        for (std::size_t i = 0; i < times; ++i) text += piece;
        return text;
    };
    constexpr std::size_t many = 60'000;
    for (const auto* piece : {" ", "?", "\n", "\t\n", "世", "answer ", "answer is", "the answer is ", "(", "A or ",
                              "A/", "\\boxed ", "\\textbf{", "option ", "option\n", "*", "\033[", "\xff", "A\n"}) {
        const auto text = repeated(piece, many);
        EXPECT_EQ(parse_choice("Let us see." + text + "\n\nThe answer is (B).", cities), 1) << piece;
        EXPECT_EQ(parse_choice("B)" + text, cities), 1) << piece;
        parse_choice(text, cities);
        parse_choice("answer is" + text, cities);
        parse_choice("A" + text, cities);
    }
    EXPECT_EQ(parse_choice("The answer is" + repeated(" ", many) + "B" + repeated("\n", many) + "x", cities), 1);
}

}  // namespace
}  // namespace cerebellum
