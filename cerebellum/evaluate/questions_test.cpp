#include "cerebellum/evaluate/questions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/evaluate/choice_prompts.h"
#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class Questions : public ::testing::Test {
  protected:
    QuestionSet load(Benchmark benchmark, const std::string& content) {
        write_file_atomically(folder_ / "questions", content);
        return load_questions(benchmark, folder_ / "questions");
    }
    std::string refusal(Benchmark benchmark, const std::string& content) {
        try {
            load(benchmark, content);
        } catch (const Error& error) {
            return error.what();
        }
        return "";
    }
    testing::TemporaryFolder folder_;
};

std::string arc_line(const std::string& labels, const std::string& key) {
    return R"({"id": "q", "question": "Which?", "choices": {"text": ["w", "x", "y", "z"], "label": )" + labels +
           R"(}, "answerKey": ")" + key + "\"}\n";
}

TEST_F(Questions, arc_answers_are_found_among_letters_and_among_numbers) {
    EXPECT_THAT(load(Benchmark::arc, arc_line(R"(["A","B","C","D"])", "C")).questions[0].right, ElementsAre(2));
    EXPECT_THAT(load(Benchmark::arc, arc_line(R"(["1","2","3","4"])", "3")).questions[0].right, ElementsAre(2));
    // A numeric key for lettered choices (and the other way round) counts from 1, as ARC's numbers do.
    EXPECT_THAT(load(Benchmark::arc, arc_line(R"(["A","B","C","D"])", "3")).questions[0].right, ElementsAre(2));
    EXPECT_THAT(load(Benchmark::arc, arc_line(R"(["1","2","3","4"])", "C")).questions[0].right, ElementsAre(2));
    EXPECT_THAT(refusal(Benchmark::arc, arc_line(R"(["A","B","C","D"])", "E")), HasSubstr("questions:1"));
}

TEST_F(Questions, hellaswag_text_and_records_say_the_same) {
    const auto text = load(Benchmark::hellaswag, "Sport: A man runs. He\n2\nsits.\nsings.\nfalls.\nflies.\n");
    const auto record =
        load(Benchmark::hellaswag, R"({"activity_label": "Sport", "ctx_a": "A man runs.", "ctx_b": "he", )"
                                   R"("endings": ["sits.", "sings.", "falls.", "flies."], "label": "2"})");
    for (const auto& set : {text, record}) {
        EXPECT_EQ(set.questions[0].text, "Sport: A man runs. He");
        EXPECT_THAT(set.questions[0].choices, ElementsAre("sits.", "sings.", "falls.", "flies."));
        EXPECT_THAT(set.questions[0].right, ElementsAre(2));
    }
    EXPECT_THAT(refusal(Benchmark::hellaswag, "one\ntwo\n"), HasSubstr("6 a task"));
}

TEST_F(Questions, hellaswag_records_are_cleaned_as_the_harness_does) {
    const auto set = load(Benchmark::hellaswag,
                          R"({"activity_label": "Home", "ctx_a": "How to [step] dust [title] Wipe.", "ctx_b": "", )"
                          R"("endings": [" Use  a cloth [substeps] now.", "b.", "c.", "d."], "label": 0})");
    EXPECT_EQ(set.questions[0].text, "Home: How to dust. Wipe.");
    EXPECT_EQ(set.questions[0].choices[0], "Use a cloth now.");
}

TEST_F(Questions, winogrande_reads_quoted_cells_and_keeps_the_last_line) {
    const auto set = load(Benchmark::winogrande, "0,Ann saw _ first.,Bob,Cid,2\n1,\"So, _ left.\",Dan,Eve,1");
    ASSERT_EQ(set.questions.size(), 2U);
    EXPECT_THAT(set.questions[0].right, ElementsAre(1));
    EXPECT_EQ(set.questions[1].text, "So, _ left.");
    EXPECT_THAT(refusal(Benchmark::winogrande, "0,Ann saw Bob.,Bob,Cid,2\n"), HasSubstr("no _"));
    EXPECT_THAT(refusal(Benchmark::winogrande, "0,Ann saw _.,Bob,Cid,3\n"), HasSubstr("'3'"));
}

std::string redux_line(const std::string& type, const std::string& correction) {
    return R"({"subject": "law", "question": "Q)" + type + correction +
           R"(", "choices": "['a', \"b's\", 'c\\'d', 'e']", )" + R"("answer": "0", "error_type": ")" + type +
           R"(", "correct_answer": ")" + correction + "\"}\n";
}

TEST_F(Questions, redux_corrects_excludes_and_counts_by_error_type) {
    const auto set =
        load(Benchmark::mmlu_redux,
             redux_line("ok", "") + redux_line("OK ", "3") + redux_line("Wrong Groundtruth", "C") +
                 redux_line("wrong_groundtruth ", "1") + redux_line("Wrong groundtruth", "") +
                 redux_line("bad_question_clarity", "") + redux_line("Bad Question Clarity", "0") +
                 redux_line("multiple correct answers", "1, 3") + "{\"subject\": \"law\", \"cut\": \"off\"}\n");
    ASSERT_EQ(set.questions.size(), 4U);
    EXPECT_THAT(set.questions[0].choices, ElementsAre("a", "b's", "c'd", "e"));
    EXPECT_THAT(set.questions[1].right, ElementsAre(0));
    EXPECT_THAT(set.questions[2].right, ElementsAre(2));
    EXPECT_THAT(set.questions[3].right, ElementsAre(1));
    EXPECT_EQ(set.corrected.at("wrong groundtruth"), 2);
    EXPECT_EQ(set.excluded.at("wrong groundtruth without a correction"), 1);
    EXPECT_EQ(set.excluded.at("bad question clarity"), 2);
    EXPECT_EQ(set.excluded.at("multiple correct answers"), 1);
    EXPECT_EQ(set.excluded.at("without an error type"), 1);
}

TEST(ParseCorrection, names_choices_in_many_ways) {
    const std::vector<std::string> choices = {"one", "two", "27.7 million", "four"};
    EXPECT_THAT(parse_correction("2", choices), ElementsAre(2));
    EXPECT_THAT(parse_correction("b", choices), ElementsAre(1));
    EXPECT_THAT(parse_correction("27.7 million", choices), ElementsAre(2));
    EXPECT_THAT(parse_correction("2 and 3", choices), ElementsAre(2, 3));
    EXPECT_THAT(parse_correction("(0, 1)", choices), ElementsAre(0, 1));
    EXPECT_THAT(parse_correction("B,C", choices), ElementsAre(1, 2));
    EXPECT_THAT(parse_correction("59%", choices), IsEmpty());
    EXPECT_THAT(parse_correction("", choices), IsEmpty());
    EXPECT_THAT(parse_correction("6", choices), IsEmpty());
}

TEST_F(Questions, selections_are_fixed_and_grow) {
    std::vector<Question> all;
    for (int i = 0; i < 100; ++i) all.push_back({std::to_string(i), "", "t", {"a", "b"}, {0}});
    const auto ten = select_questions(Benchmark::arc, all, 10).questions;
    const auto twenty = select_questions(Benchmark::arc, all, 20).questions;
    for (const auto& question : ten)
        EXPECT_TRUE(std::ranges::any_of(twenty, [&](const Question& q) { return q.id == question.id; }));
    EXPECT_EQ(select_questions(Benchmark::arc, all, 0).questions.size(), 100U);
    EXPECT_EQ(select_questions(Benchmark::arc, all, 100).rule, "all");
    EXPECT_EQ(first_questions(all, 30).questions.back().id, "29");
    EXPECT_EQ(first_questions(all, 30).rule, "the first 30 of the file");
}

TEST_F(Questions, ids_are_the_files_or_places_and_never_double) {
    const auto set =
        load(Benchmark::mmlu, R"({"subject": "law", "question": "a", "choices": ["x", "y"], "answer": "B"})"
                              "\n"
                              R"({"subject": "art", "question": "b", "choices": ["x", "y"], "answer": 0})"
                              "\n");
    EXPECT_EQ(set.questions[0].id, "law/0");
    EXPECT_EQ(set.questions[1].id, "art/0");
    EXPECT_THAT(refusal(Benchmark::arc, arc_line(R"(["A","B","C","D"])", "A") + arc_line(R"(["A","B","C","D"])", "A")),
                HasSubstr("'q'"));
    EXPECT_THAT(refusal(Benchmark::mmlu, R"({"subject": "law", "question": "a", "choices": ["x", " "], "answer": 0})"),
                HasSubstr("empty"));
}

TEST(ChoicePrompts, are_the_harness_s) {
    const Question mmlu{"1", "high_school_physics", " What? ", {"p", "q"}, {1}};
    const auto prompt = make_choice_prompt(Benchmark::mmlu, mmlu, std::vector{mmlu});
    EXPECT_EQ(prompt.contexts[0],
              "The following are multiple choice questions (with answers) about high school physics.\n\n"
              "What?\nA. p\nB. q\nAnswer: B\n\nWhat?\nA. p\nB. q\nAnswer:");
    EXPECT_THAT(prompt.continuations, ElementsAre(" A", " B"));
    const Question arc{"1", "", "Why?", {"because", "so"}, {0}};
    EXPECT_EQ(make_choice_prompt(Benchmark::arc, arc, {}).contexts[0], "Question: Why?\nAnswer:");
    const Question winogrande{"1", "", "Ann told _ that it rained.", {"Bob", "Cid"}, {0}};
    const auto gaps = make_choice_prompt(Benchmark::winogrande, winogrande, {});
    EXPECT_THAT(gaps.contexts, ElementsAre("Ann told Bob", "Ann told Cid"));
    EXPECT_THAT(gaps.continuations, ElementsAre(" that it rained.", " that it rained."));
}

}  // namespace
}  // namespace cerebellum
