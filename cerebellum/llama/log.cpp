#include "cerebellum/llama/log.h"

#include <llama.h>

#include <cctype>

namespace cerebellum {

namespace {

struct Collected {
    std::string all;
    std::string first_error;
    std::string last_error;
    ggml_log_level level = GGML_LOG_LEVEL_NONE;
};

Collected collected;
ggml_log_callback previous_callback = nullptr;
void* previous_data = nullptr;

void collect(ggml_log_level level, const char* text, void*) {
    collected.all += text;
    if (level != GGML_LOG_LEVEL_CONT) {
        collected.level = level;
        if (level == GGML_LOG_LEVEL_ERROR) collected.last_error.clear();
    }
    if (collected.level != GGML_LOG_LEVEL_ERROR) return;
    if (collected.first_error.empty() || collected.first_error == collected.last_error) collected.first_error += text;
    collected.last_error += text;
}

/// One line of what was logged.
std::string message(std::string line, const std::string& fallback) {
    for (char& c : line)
        if (std::isspace(static_cast<unsigned char>(c))) c = ' ';
    while (!line.empty() && line.back() == ' ') line.pop_back();
    // "function_name: message": users have no use for the function.
    if (const auto colon = line.find(": "); colon != std::string::npos && line.find(' ') > colon)
        line.erase(0, colon + 2);
    return line.empty() ? fallback : line;
}

void drop(ggml_log_level, const char*, void*) {}

}  // namespace

LogCapture::LogCapture() {
    collected = {};
    llama_log_get(&previous_callback, &previous_data);
    llama_log_set(collect, nullptr);
}

LogCapture::~LogCapture() {
    llama_log_set(previous_callback, previous_data);
}

const std::string& LogCapture::text() const {
    return collected.all;
}

std::string LogCapture::last_error(const std::string& fallback) const {
    return message(collected.last_error, fallback);
}

std::string LogCapture::first_error(const std::string& fallback) const {
    return message(collected.first_error, fallback);
}

void silence_llama_log() {
    llama_log_set(drop, nullptr);
}

}  // namespace cerebellum
