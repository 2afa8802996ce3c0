#include "cerebellum/report/modelfile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>

namespace cerebellum {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

ChatRenderer builtin(const std::string& name) {
    return [name](std::span<const ChatMessage> chat, bool reply) { return apply_chat_template(name, chat, reply); };
}

std::string replaced(std::string text, const std::string& what, const std::string& with) {
    for (std::size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += with.size())
        text.replace(at, what.size(), with);
    return text;
}

/// What Ollama makes of a turn: {{ if .System }}…{{ else }}…{{ end }}, variables, and quoted text.
std::string turn(const std::string& text, const std::string& system, const std::string& prompt,
                 const std::string& response) {
    std::smatch match;
    std::string result = text;
    if (std::regex_search(text, match,
                          std::regex(R"(\{\{ if \.System \}\}([\s\S]*?)(?:\{\{ else \}\}([\s\S]*?))?\{\{ end \}\})")))
        result = match.prefix().str() + (system.empty() ? match[2].str() : match[1].str()) + match.suffix().str();
    result = replaced(result, "{{ .System }}", system);
    result = replaced(result, "{{ .Prompt }}", prompt);
    return response.empty() ? result.substr(0, result.find("{{ .Response }}"))
                            : replaced(result, "{{ .Response }}", response);
}

class EveryFamily : public ::testing::TestWithParam<std::string> {};

TEST_P(EveryFamily, gives_the_text_that_llama_cpp_gives_or_says_that_it_does_not) {
    const auto render = builtin(GetParam());
    const auto found = ollama_template(render);
    if (!found) GTEST_SKIP() << "not written in Ollama's language";
    const std::vector<ChatMessage> one = {{"user", "Hello"}};
    EXPECT_EQ(turn(found->text, "", "Hello", ""), render(one, true).value());
    if (found->has_system) {
        const std::vector<ChatMessage> with = {{"system", "Be kind"}, {"user", "Hello"}};
        EXPECT_EQ(turn(found->text, "Be kind", "Hello", ""), render(with, true).value());
    }
    if (found->exact) {
        const std::vector<ChatMessage> several = {{"user", "Hello"}, {"assistant", "Hi"}, {"user", "Well"}};
        EXPECT_EQ(turn(found->text, "", "Hello", "Hi") + turn(found->text, "", "Well", ""),
                  render(several, true).value());
    }
}

INSTANTIATE_TEST_SUITE_P(Ollama, EveryFamily, ::testing::ValuesIn(chat_template_families()), [](const auto& family) {
    return std::regex_replace(family.param, std::regex("[^A-Za-z0-9]"), "_");
});

TEST(Ollama, writes_the_usual_families_exactly) {
    for (const auto* name : {"chatml", "llama3", "gemma", "phi3", "zephyr"}) {
        const auto found = ollama_template(builtin(name));
        ASSERT_TRUE(found) << name;
        EXPECT_TRUE(found->exact) << name << "\n" << found->text;
    }
    EXPECT_EQ(ollama_template(builtin("chatml"))->text,
              "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}<|im_start|>user\n{{ .Prompt }}"
              "<|im_end|>\n<|im_start|>assistant\n{{ .Response }}<|im_end|>\n");
}

TEST(Ollama, templates_that_nobody_knows) {
    EXPECT_FALSE(ollama_template(builtin("{{ a new language }}")));
    EXPECT_FALSE(ollama_template([](auto, bool) { return std::optional<std::string>("no message at all"); }));
    EXPECT_FALSE(ollama_template([](auto, bool) { return std::optional<std::string>("\"\"\"USERmark"); }));
}

TEST(Ollama, braces_of_the_model_are_no_directives) {
    const auto found = ollama_template([](std::span<const ChatMessage> chat, bool) {
        return std::optional<std::string>("{{" + chat.back().content + "}}");
    });
    ASSERT_TRUE(found);
    EXPECT_THAT(found->text, HasSubstr(R"({{ "{{" }}{{ .Prompt }}}})"));
}

TEST(Modelfile, of_a_base_model_completes_text) {
    const auto text = write_modelfile({"small.gguf", {}, false, {"</s>"}, {{"num_ctx", "512"}}, "mit"});
    EXPECT_EQ(text,
              "# ollama create small -f Modelfile\nFROM ./small.gguf\n# The model has no chat template: it completes "
              "text.\nTEMPLATE \"\"\"{{ .Prompt }}\"\"\"\nPARAMETER stop \"</s>\"\nPARAMETER num_ctx 512\nLICENSE "
              "\"mit\"\n");
}

TEST(Modelfile, without_a_known_template_ollama_chooses) {
    EXPECT_THAT(write_modelfile({"small.gguf", {}, true, {}, {}, ""}), Not(HasSubstr("\nTEMPLATE")));
}

TEST(Modelfile, strings_are_escaped) {
    // Ollama knows no escapes.
    EXPECT_THAT(write_modelfile({"small.gguf", {}, true, {"a\"\n\\"}, {}, ""}),
                HasSubstr("PARAMETER stop \"\"\"a\"\n\\\"\"\"\n"));
    EXPECT_THAT(write_modelfile({"small.gguf", {}, true, {"a\n"}, {}, ""}), HasSubstr("PARAMETER stop \"a\n\"\n"));
}

TEST(Modelfile, names_and_paths_are_what_ollama_reads) {
    EXPECT_THAT(write_modelfile({"../my model\n#1.gguf", {}, true, {}, {}, ""}),
                ::testing::StartsWith("# ollama create my-model--1 -f Modelfile\nFROM \"../my model\n#1.gguf\"\n"));
    EXPECT_EQ(ollama_name("-x.gguf"), "model-x");
    EXPECT_EQ(ollama_name(".gguf"), "model");
}

constexpr const char* smollm2 =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou "
    "are "
    "a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant\\n' }}{% endif %}";

TEST(Ollama, a_default_system_message_is_kept) {
    const std::string text = smollm2;
    const auto found = ollama_template(builtin(text));
    ASSERT_TRUE(found);
    const auto prose = prose_of(text, *found);
    EXPECT_EQ(prose.system, "You are a helpful AI assistant named SmolLM, trained by Hugging Face");
    EXPECT_EQ(prose.left_out, "");
    const auto file = write_modelfile({"small.gguf", found, true, {}, {}, "", prose});
    EXPECT_THAT(file, HasSubstr("\nSYSTEM \"You are a helpful AI assistant named SmolLM, trained by Hugging Face\"\n"));
    // With it, a chat without a system message comes to what the model's own template makes of it.
    EXPECT_EQ(turn(found->text, prose.system, "Hello", ""),
              "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
              "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n");
}

TEST(Ollama, a_default_that_is_set_as_a_variable_is_kept_and_other_text_is_named) {
    const auto found = ollama_template(builtin("chatml"));
    ASSERT_TRUE(found);
    const auto set = prose_of("{%- set default_system_message = 'You answer in one word.' -%}{{ x }}", *found);
    EXPECT_EQ(set.system, "You answer in one word.");
    const auto built = prose_of("{% set system = 'You are the assistant of ' + name %}", *found);
    EXPECT_EQ(built.system, "");
    EXPECT_EQ(built.left_out, "You are the assistant of ");
    const auto tools = prose_of(
        "{% if tools %}You may call one of\nthese functions{% endif %}{# a long remark of no "
        "interest #}",
        *found);
    EXPECT_EQ(tools.system, "");
    EXPECT_EQ(tools.left_out, "You may call one of these functions");
    EXPECT_THAT(write_modelfile({"small.gguf", found, true, {}, {}, "", tools}),
                HasSubstr("leaves out, such as: You may call one of these functions\nTEMPLATE"));
    EXPECT_EQ(prose_of("{% for m in messages %}{{ '<|im_start|>' + m['role'] }}{% endfor %}", *found).left_out, "");
    for (const auto* broken : {"{{ 'never ends and goes on", "{%", "{{", "{# no end", "'"}) prose_of(broken, *found);
}

}  // namespace
}  // namespace cerebellum
