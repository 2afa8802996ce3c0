#include "cerebellum/evaluate/questions.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <set>
#include <sstream>

#include "cerebellum/core/compressed_file.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/evaluate/question_limits.h"

namespace cerebellum {

namespace {

using nlohmann::json;

constexpr std::pair<Benchmark, std::string_view> names[] = {
    {Benchmark::hellaswag, "hellaswag"}, {Benchmark::winogrande, "winogrande"}, {Benchmark::arc, "arc"},
    {Benchmark::mmlu, "mmlu"},           {Benchmark::mmlu_redux, "mmlu-redux"}, {Benchmark::truthfulqa, "truthfulqa"},
    {Benchmark::choice, "choice"}};

/// A record that is not usable, said without its place; load_questions adds that.
class BadRecord : public Error {
  public:
    using Error::Error;
};

std::string trimmed(std::string_view text) {
    const auto begin = text.find_first_not_of(" \t\r\n");
    if (begin == std::string_view::npos) return "";
    return std::string(text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1));
}

std::string lower(std::string_view text) {
    std::string result(text);
    std::ranges::transform(result, result.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return result;
}

std::vector<std::string> lines_of(const std::string& content) {
    std::vector<std::string> lines;
    std::istringstream stream(content);
    for (std::string line; std::getline(stream, line);) {
        if (line.ends_with('\r')) line.pop_back();
        lines.push_back(line);
    }
    return lines;
}

const json& field(const json& record, const char* name) {
    if (!record.contains(name)) throw BadRecord(fmt::format("it has no '{}'", name));
    return record[name];
}

std::string text_field(const json& record, const char* name) {
    const auto& value = field(record, name);
    if (value.is_string()) return value.get<std::string>();
    if (value.is_number_integer()) return std::to_string(value.get<long long>());
    throw BadRecord(fmt::format("its '{}' is no text", name));
}

std::vector<std::string> text_list(const json& value, const char* name) {
    if (!value.is_array()) throw BadRecord(fmt::format("its '{}' is no list", name));
    std::vector<std::string> texts;
    for (const auto& item : value) {
        if (!item.is_string()) throw BadRecord(fmt::format("its '{}' are not all texts", name));
        texts.push_back(item.get<std::string>());
    }
    return texts;
}

/// "C", "c)", "3" as an index below `count`; digits count from `first_digit`.
std::optional<int> letter_or_number(std::string_view text, int count, int first_digit) {
    auto answer = trimmed(text);
    while (!answer.empty() && (answer.back() == ')' || answer.back() == '.')) answer.pop_back();
    int index = -1;
    if (answer.size() == 1 && std::isalpha(static_cast<unsigned char>(answer[0])) != 0)
        index = std::toupper(static_cast<unsigned char>(answer[0])) - 'A';
    else if (!answer.empty() && answer.size() < 4 &&
             std::ranges::all_of(answer, [](unsigned char c) { return std::isdigit(c) != 0; }))
        index = std::stoi(answer) - first_digit;
    if (index < 0 || index >= count) return std::nullopt;
    return index;
}

/// The choice that an answer names. Labels decide where there are any: an answer "3" among the labels A to D, or "C"
/// among 1 to 4, is the third.
int answer_index(const json& answer, const std::vector<std::string>& choices, const std::vector<std::string>& labels) {
    const auto count = static_cast<int>(choices.size());
    if (answer.is_number_integer()) {
        const auto index = answer.get<long long>();
        if (index >= 0 && index < count) return static_cast<int>(index);
        throw BadRecord(fmt::format("its answer {} is none of the {} choices (they count from 0)", index, count));
    }
    if (!answer.is_string()) throw BadRecord("its answer is neither a number nor a text");
    const auto text = answer.get<std::string>();
    if (const auto at = std::ranges::find(labels, trimmed(text)); at != labels.end())
        return static_cast<int>(at - labels.begin());
    if (const auto at = std::ranges::find(choices, text); at != choices.end() && labels.empty() && text.size() > 1)
        return static_cast<int>(at - choices.begin());
    if (const auto index = letter_or_number(text, count, labels.empty() ? 0 : 1)) return *index;
    throw BadRecord(fmt::format("its answer '{}' is none of its {} choices", text, count));
}

// HellaSwag ---------------------------------------------------------------------------------------------------------

/// As the community's evaluation harness prepares WikiHow's texts (lm_eval/tasks/hellaswag/utils.py): titles become
/// sentence ends, other bracketed words are dropped, and double blanks are made single once.
std::string hellaswag_clean(std::string text) {
    text = trimmed(text);
    std::string titled, kept;
    for (std::size_t i = 0; i < text.size();) {
        constexpr std::string_view title = "[title]";
        if (titled.ends_with(' ') && std::string_view(text).substr(i).starts_with(title)) {
            titled.back() = '.';
            titled += ' ';
            i += title.size();
        } else {
            titled += text[i++];
        }
    }
    for (std::size_t i = 0; i < titled.size();) {
        const auto open = titled.find('[', i);
        const auto close = open == std::string::npos ? open : titled.find(']', open);
        kept.append(titled, i, close == std::string::npos ? close : open - i);
        i = close == std::string::npos ? titled.size() : close + 1;
    }
    text = std::move(kept);
    std::string result;
    for (std::size_t i = 0; i < text.size(); ++i) {
        result += text[i];
        if (text[i] == ' ' && i + 1 < text.size() && text[i + 1] == ' ') ++i;
    }
    return result;
}

Question hellaswag_record(const json& record) {
    Question question;
    auto second = text_field(record, "ctx_b");
    for (std::size_t i = 0; i < second.size(); ++i) {  // as Python's capitalize()
        const auto c = static_cast<unsigned char>(second[i]);
        second[i] = static_cast<char>(i == 0 ? std::toupper(c) : std::tolower(c));
    }
    question.text =
        hellaswag_clean(text_field(record, "activity_label") + ": " + text_field(record, "ctx_a") + " " + second);
    for (const auto& ending : text_list(field(record, "endings"), "endings"))
        question.choices.push_back(hellaswag_clean(ending));
    const auto label = text_field(record, "label");
    const auto index = letter_or_number(label, static_cast<int>(question.choices.size()), 0);
    if (!index) throw BadRecord(fmt::format("its label '{}' is no ending", label));
    question.right = {*index};
    return question;
}

std::vector<Question> hellaswag_lines(const std::vector<std::string>& lines, const std::string& path) {
    constexpr std::size_t per_task = 6;
    if (lines.size() % per_task != 0)
        throw Error(fmt::format("{}: {} lines; a HellaSwag text has 6 a task (context, label, four endings)", path,
                                lines.size()));
    std::vector<Question> questions;
    for (std::size_t i = 0; i < lines.size(); i += per_task) {
        Question question;
        question.text = lines[i];
        question.choices.assign(lines.begin() + static_cast<std::ptrdiff_t>(i + 2),
                                lines.begin() + static_cast<std::ptrdiff_t>(i + per_task));
        const auto label = letter_or_number(lines[i + 1], 4, 0);
        if (!label) throw Error(fmt::format("{}:{}: the label '{}' is not 0, 1, 2 or 3", path, i + 2, lines[i + 1]));
        question.right = {*label};
        questions.push_back(std::move(question));
    }
    return questions;
}

// WinoGrande --------------------------------------------------------------------------------------------------------

std::vector<std::string> csv_cells(std::string_view line) {
    std::vector<std::string> cells(1);
    bool quoted = false;
    for (std::size_t i = 0; i < line.size(); ++i) {
        if (line[i] == '"' && quoted && i + 1 < line.size() && line[i + 1] == '"')
            cells.back() += line[i++];
        else if (line[i] == '"')
            quoted = !quoted;
        else if (line[i] == ',' && !quoted)
            cells.emplace_back();
        else
            cells.back() += line[i];
    }
    return cells;
}

Question winogrande_question(std::string sentence, std::vector<std::string> options, const std::string& answer) {
    if (sentence.find('_') == std::string::npos) throw BadRecord("its sentence has no _");
    const auto index = letter_or_number(answer, 2, 1);
    if (!index) throw BadRecord(fmt::format("its answer '{}' is not 1 or 2", answer));
    Question question;
    question.text = std::move(sentence);
    question.choices = std::move(options);
    question.right = {*index};
    return question;
}

Question winogrande_line(std::string_view line) {
    const auto cells = csv_cells(line);
    if (cells.size() != 5) throw BadRecord("it has not the 5 cells index,sentence,option1,option2,answer");
    auto question = winogrande_question(cells[1], {cells[2], cells[3]}, cells[4]);
    question.id = cells[0];
    return question;
}

// The others --------------------------------------------------------------------------------------------------------

Question arc_record(const json& record) {
    Question question;
    const auto& stem = field(record, "question");
    question.text = stem.is_object() ? text_field(stem, "stem") : text_field(record, "question");
    std::vector<std::string> labels;
    const auto& choices = stem.is_object() ? field(stem, "choices") : field(record, "choices");
    if (choices.is_object()) {
        question.choices = text_list(field(choices, "text"), "choices.text");
        labels = text_list(field(choices, "label"), "choices.label");
    } else if (choices.is_array()) {
        for (const auto& choice : choices) {
            question.choices.push_back(text_field(choice, "text"));
            labels.push_back(text_field(choice, "label"));
        }
    }
    if (question.choices.empty() || labels.size() != question.choices.size())
        throw BadRecord("its choices and labels are not of the same number");
    question.right = {answer_index(field(record, "answerKey"), question.choices, labels)};
    return question;
}

Question mmlu_record(const json& record) {
    Question question;
    question.group = text_field(record, "subject");
    question.text = text_field(record, "question");
    question.choices = text_list(field(record, "choices"), "choices");
    question.right = {answer_index(field(record, "answer"), question.choices, {})};
    return question;
}

/// Empty, and counted in `set`, where the record is not to be scored.
std::optional<Question> redux_record(const json& record, QuestionSet& set) {
    if (!record.contains("error_type") || !record["error_type"].is_string() || !record.contains("choices")) {
        ++set.excluded["without an error type"];
        return std::nullopt;
    }
    const auto type = normalised_error_type(record["error_type"].get<std::string>());
    Question question;
    question.group = text_field(record, "subject");
    question.text = text_field(record, "question");
    const auto& choices = field(record, "choices");
    question.choices =
        choices.is_string() ? parse_python_list(choices.get<std::string>()) : text_list(choices, "choices");
    question.right = {answer_index(
        record["answer"].is_string()
            ? json(letter_or_number(record["answer"].get<std::string>(), static_cast<int>(question.choices.size()), 0)
                       .value_or(-1))
            : field(record, "answer"),
        question.choices, {})};
    if (type == "ok") return question;
    if (type != "wrong groundtruth") {
        ++set.excluded[type];
        return std::nullopt;
    }
    const auto& correction = field(record, "correct_answer");
    const auto right =
        correction.is_string() ? parse_correction(correction.get<std::string>(), question.choices) : std::vector<int>{};
    if (right.size() != 1) {
        ++set.excluded["wrong groundtruth without a correction"];
        return std::nullopt;
    }
    question.right = right;
    ++set.corrected["wrong groundtruth"];
    return question;
}

std::vector<int> labelled_right(const json& labels, std::size_t n_choices) {
    std::vector<int> right;
    if (!labels.is_array() || labels.size() != n_choices) throw BadRecord("it has not one label a choice");
    for (std::size_t i = 0; i < labels.size(); ++i)
        if (labels[i] == 1 || labels[i] == true) right.push_back(static_cast<int>(i));
    if (right.empty()) throw BadRecord("none of its labels is 1");
    return right;
}

/// The targets with several true answers where there are any (mc2); with one (mc1) otherwise.
Question truthfulqa_record(const json& record) {
    Question question;
    question.text = text_field(record, "question");
    const auto& targets = field(record, record.contains("mc2_targets") ? "mc2_targets" : "mc1_targets");
    question.choices = text_list(field(targets, "choices"), "choices");
    question.right = labelled_right(field(targets, "labels"), question.choices.size());
    return question;
}

Question choice_record(const json& record) {
    Question question;
    if (record.contains("group")) question.group = text_field(record, "group");
    question.text = text_field(record, record.contains("question") ? "question" : "prompt");
    question.choices = text_list(field(record, "choices"), "choices");
    question.right = record.contains("labels")
                         ? labelled_right(record["labels"], question.choices.size())
                         : std::vector<int>{answer_index(field(record, "answer"), question.choices, {})};
    return question;
}

std::optional<Question> json_question(Benchmark benchmark, const json& record, QuestionSet& set) {
    switch (benchmark) {
        case Benchmark::hellaswag:
            return hellaswag_record(record);
        case Benchmark::winogrande:
            return winogrande_question(text_field(record, "sentence"),
                                       {text_field(record, "option1"), text_field(record, "option2")},
                                       text_field(record, "answer"));
        case Benchmark::arc:
            return arc_record(record);
        case Benchmark::mmlu:
            return mmlu_record(record);
        case Benchmark::mmlu_redux:
            return redux_record(record, set);
        case Benchmark::truthfulqa:
            return truthfulqa_record(record);
        case Benchmark::choice:
            return choice_record(record);
    }
    return std::nullopt;
}

std::optional<Question> read_line(Benchmark benchmark, const std::string& line, QuestionSet& set) {
    if (line.find_first_not_of(" \t") == std::string::npos) return std::nullopt;
    if (benchmark == Benchmark::winogrande && line.front() != '{') return winogrande_line(line);
    const auto parsed = try_parse_json(line, question_limits);
    if (!parsed) throw BadRecord("it is no JSON, or nested too deeply");
    const auto& record = *parsed;
    if (!record.is_object()) throw BadRecord("it is no JSON object");
    auto question = json_question(benchmark, record, set);
    if (question && record.contains("id")) question->id = text_field(record, "id");
    return question;
}

/// Every question gets an id of its own: the file's, else its place; MMLU's with the subject in front.
void give_ids(std::vector<Question>& questions) {
    std::map<std::string, int> in_group;
    std::set<std::string> taken;
    for (auto& question : questions) {
        const int place = in_group[question.group]++;
        if (question.id.empty())
            question.id = question.group.empty() ? std::to_string(place) : fmt::format("{}/{}", question.group, place);
        if (!taken.insert(question.id).second) throw Error(fmt::format("two questions have the id '{}'", question.id));
    }
}

void check(const Question& question) {
    if (question.choices.size() < 2) throw BadRecord("it has less than two choices");
    for (const auto& choice : question.choices)
        if (trimmed(choice).empty()) throw BadRecord("one of its choices is empty");
}

std::vector<std::size_t> hellaswag_order(std::size_t n_questions, std::size_t count) {
    std::vector<std::size_t> left(n_questions), order;
    for (std::size_t i = 0; i < n_questions; ++i) left[i] = i;
    std::mt19937 rng(1);
    while (order.size() < count) {
        std::uniform_int_distribution<std::size_t> place(0, left.size() - 1);
        const auto at = left.begin() + static_cast<std::ptrdiff_t>(place(rng));
        order.push_back(*at);
        left.erase(at);
    }
    return order;
}

std::vector<std::size_t> winogrande_order(std::size_t n_questions, std::size_t count) {
    std::vector<std::size_t> left(n_questions), order;
    for (std::size_t i = 0; i < n_questions; ++i) left[i] = i;
    std::mt19937 rng(1);
    const float scale = 1.0F / (1.0F + static_cast<float>(std::mt19937::max()));
    while (order.size() < count) {
        const auto place =
            static_cast<std::size_t>(scale * static_cast<float>(rng()) * static_cast<float>(left.size()));
        order.push_back(left[place]);
        left[place] = left.back();
        left.pop_back();
    }
    return order;
}

std::vector<std::size_t> hashed_order(const std::vector<Question>& questions, std::size_t count) {
    std::vector<std::pair<std::string, std::size_t>> keyed;
    for (std::size_t i = 0; i < questions.size(); ++i) keyed.emplace_back(sha256(questions[i].id), i);
    std::ranges::sort(keyed);
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < count; ++i) order.push_back(keyed[i].second);
    std::ranges::sort(order);  // groups stay together
    return order;
}

}  // namespace

Benchmark parse_benchmark(std::string_view name) {
    std::string known;
    for (const auto& [benchmark, its_name] : names) {
        if (name == its_name) return benchmark;
        known += fmt::format("{}{}", known.empty() ? "" : ", ", its_name);
    }
    throw UsageError(fmt::format("there is no benchmark '{}'; known are {}", name, known));
}

std::string benchmark_name(Benchmark benchmark) {
    for (const auto& [known, name] : names)
        if (known == benchmark) return std::string(name);
    return "";
}

QuestionSet load_questions(Benchmark benchmark, const std::filesystem::path& path) {
    const auto content = read_unpacked(path);
    const auto lines = lines_of(content);
    QuestionSet set;
    const bool is_text = benchmark == Benchmark::hellaswag && !content.starts_with('{');
    if (is_text) set.questions = hellaswag_lines(lines, path.string());
    for (std::size_t i = 0; i < lines.size() && !is_text; ++i) {
        try {
            auto question = read_line(benchmark, lines[i], set);
            if (!question) continue;
            check(*question);
            set.questions.push_back(std::move(*question));
        } catch (const BadRecord& reason) {
            throw Error(fmt::format("{}:{}: not a question of {}: {}", path.string(), i + 1, benchmark_name(benchmark),
                                    reason.what()));
        }
    }
    if (set.questions.empty()) throw Error(fmt::format("{} has no questions", path.string()));
    give_ids(set.questions);
    return set;
}

Selection select_questions(Benchmark benchmark, std::vector<Question> questions, int count) {
    const auto wanted = static_cast<std::size_t>(count);
    if (count <= 0 || wanted >= questions.size()) return {std::move(questions), "all"};
    Selection selection;
    std::vector<std::size_t> order;
    if (benchmark == Benchmark::hellaswag) {
        order = hellaswag_order(questions.size(), wanted);
        selection.rule = fmt::format("the {} of llama-perplexity --hellaswag-tasks", count);
    } else if (benchmark == Benchmark::winogrande) {
        order = winogrande_order(questions.size(), wanted);
        selection.rule = fmt::format("the {} of llama-perplexity --winogrande-tasks", count);
    } else {
        order = hashed_order(questions, wanted);
        selection.rule = fmt::format("the {} with the smallest SHA-256 of their id", count);
    }
    for (const auto i : order) selection.questions.push_back(std::move(questions[i]));
    return selection;
}

Selection first_questions(std::vector<Question> questions, int count) {
    const auto wanted = static_cast<std::size_t>(count);
    if (count <= 0 || wanted >= questions.size()) return {std::move(questions), "all"};
    questions.resize(wanted);
    return {std::move(questions), fmt::format("the first {} of the file", count)};
}

std::string normalised_error_type(std::string_view text) {
    std::string result;
    for (const char c : trimmed(lower(text))) {
        const bool blank = c == '_' || c == ' ' || c == '-';
        if (!blank)
            result += c;
        else if (!result.ends_with(' '))
            result += ' ';
    }
    return result;
}

std::vector<int> parse_correction(std::string_view text, const std::vector<std::string>& choices) {
    const auto answer = trimmed(text);
    const auto count = static_cast<int>(choices.size());
    for (int i = 0; i < count; ++i)
        if (!answer.empty() && trimmed(choices[static_cast<std::size_t>(i)]) == answer &&
            !letter_or_number(answer, count, 0))
            return {i};
    std::set<int> named;
    std::string word;
    const auto finish = [&] {
        if (word.empty() || word == "and" || word == "or") {
            word.clear();
            return true;
        }
        const auto index = letter_or_number(word, count, 0);
        word.clear();
        if (index) named.insert(*index);
        return index.has_value();
    };
    for (const char c : answer) {
        if (c == ' ' || c == ',' || c == '(' || c == ')' || c == '/') {
            if (!finish()) return {};
        } else {
            word += c;
        }
    }
    if (!finish()) return {};
    return {named.begin(), named.end()};
}

std::vector<std::string> parse_python_list(std::string_view text) {
    const auto fail = [&] { return BadRecord(fmt::format("'{}' is no list of texts", text.substr(0, 40))); };
    std::vector<std::string> items;
    std::size_t i = 0;
    const auto skip_blanks = [&] {
        while (i < text.size() && (text[i] == ' ' || text[i] == '\n' || text[i] == '\r')) ++i;
    };
    skip_blanks();
    if (i >= text.size() || text[i++] != '[') throw fail();
    for (skip_blanks(); i < text.size() && text[i] != ']'; skip_blanks()) {
        const char quote = text[i++];
        if (quote != '\'' && quote != '"') throw fail();
        std::string item;
        for (; i < text.size() && text[i] != quote; ++i) {
            if (text[i] != '\\' || i + 1 >= text.size()) {
                item += text[i];
                continue;
            }
            const char escaped = text[++i];
            if (escaped == 'n')
                item += '\n';
            else if (escaped == 't')
                item += '\t';
            else if (escaped == 'r')
                item += '\r';
            else if (escaped == '\\' || escaped == '\'' || escaped == '"')
                item += escaped;
            else
                (item += '\\') += escaped;
        }
        if (i++ >= text.size()) throw fail();
        items.push_back(std::move(item));
        skip_blanks();
        if (i < text.size() && text[i] == ',') ++i;
    }
    if (i >= text.size()) throw fail();
    return items;
}

}  // namespace cerebellum
