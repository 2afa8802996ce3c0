#include "cerebellum/predict/import_csv.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>

#include "cerebellum/core/compressed_file.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/list_lines.h"
#include "cerebellum/predict/foreign_type.h"

namespace cerebellum {

namespace {

std::vector<std::string> cells_of(std::string_view line) {
    std::vector<std::string> cells;
    while (true) {
        const auto comma = line.find(',');
        auto cell = line.substr(0, comma);
        while (!cell.empty() && (cell.front() == ' ' || cell.front() == '"')) cell.remove_prefix(1);
        while (!cell.empty() && (cell.back() == ' ' || cell.back() == '"')) cell.remove_suffix(1);
        cells.emplace_back(cell);
        if (comma == std::string_view::npos) return cells;
        line.remove_prefix(comma + 1);
    }
}

bool says_missing(std::string_view cell) {
    return cell.empty() || cell == "404" || cell == "404%";
}

class CsvReader {
  public:
    CsvReader(const std::filesystem::path& path, Metric metric, std::optional<double> baseline_ppl)
        : metric_(metric), baseline_ppl_(baseline_ppl) {
        table_.origin = path.string();
        table_.metric = metric;
        read_lines(read_unpacked(path));
    }

    DamageTable read() {
        if (lines_.empty()) refuse("it is empty");
        read_header();
        if (lines_.size() < 2) refuse("it has no row of measurements");
        for (std::size_t i = 1; i < lines_.size(); ++i) read_row(lines_[i]);
        if (table_.rows.empty()) refuse("it holds no measurement of a tensor that is read");
        return std::move(table_);
    }

  private:
    struct Line {
        int number = 0;
        std::vector<std::string> cells;
    };

    [[noreturn]] void refuse(const std::string& reason) const {
        throw Error(fmt::format("cannot use {}: {}", table_.origin, reason));
    }

    void read_lines(std::string_view text) {
        for (const auto& line : list_lines(text)) lines_.push_back({line.number, cells_of(line.text)});
    }

    void read_header() {
        header_ = lines_.front().cells;
        if (header_.front() != "QTYPE") refuse("its header does not begin with QTYPE");
        if (header_.size() < 2) refuse("its header names no tensor");
        std::map<std::string, std::size_t> columns;
        for (std::size_t c = 1; c < header_.size(); ++c) {
            if (header_[c].empty()) refuse(fmt::format("column {} has no name", c + 1));
            const auto [first, is_new] = columns.emplace(header_[c], c);
            if (!is_new)
                refuse(
                    fmt::format("columns {} and {} are both of {}; remove one", first->second + 1, c + 1, header_[c]));
        }
    }

    void read_row(const Line& line) {
        const auto& type = line.cells.front();
        const auto known = parse_foreign_type(type);
        if (!known) refuse(fmt::format("row {} is of the type '{}', which nobody knows", line.number, type));
        if (line.cells.size() != header_.size())
            refuse(fmt::format("row {} ({}) has {} values for {} tensors", line.number, type, line.cells.size() - 1,
                               header_.size() - 1));
        std::string key = type;  // names of types are read without regard to case
        std::ranges::transform(key, key.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
        if (const auto [first, is_new] = type_rows_.emplace(key, line.number); !is_new)
            refuse(fmt::format("rows {} and {} are both of the type {}; remove one", first->second, line.number, type));
        const double baseline = metric_ == Metric::nll ? baseline_of(line) : 0.0;
        for (std::size_t c = 1; c < header_.size(); ++c) {
            if (says_missing(line.cells[c])) {
                table_.missing.push_back(fmt::format("{} in {}", header_[c], type));
                continue;
            }
            const double value = value_at(line, c);
            // Crushing to so few bits and nothing changes, to the last of six digits: the tensor is not read.
            constexpr double few_bits = 3.0;
            if (metric_ == Metric::kld && value == 0.0 && known->bits_per_weight < few_bits) {
                if (std::ranges::find(table_.unread, header_[c]) == table_.unread.end())
                    table_.unread.push_back(header_[c]);
                continue;
            }
            DamageRow row;
            row.tensor = header_[c];
            row.type = type;
            row.where = fmt::format("row {} ({}), column {}", line.number, type, c + 1);
            (metric_ == Metric::kld ? row.kld : row.delta_nll) =
                metric_ == Metric::kld ? value : std::log(value / baseline);
            table_.rows.push_back(std::move(row));
        }
    }

    double value_at(const Line& line, std::size_t column) const {
        const auto& cell = line.cells[column];
        double value = 0.0;
        const auto [end, status] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
        const auto fail = [&](const char* reason) {
            refuse(fmt::format("row {} ({}), column {} ({}): {} {}", line.number, line.cells.front(), column + 1,
                               header_[column], cell, reason));
        };
        if (status != std::errc{} || end != cell.data() + cell.size() || !std::isfinite(value)) fail("is no number");
        if (metric_ == Metric::kld && value < 0.0) fail("is below 0, which no divergence is");
        if (metric_ == Metric::nll && value <= 0.0) fail("is not above 0, which every perplexity is");
        return value;
    }

    double baseline_of(const Line& line) {
        if (baseline_ppl_) return *baseline_ppl_;
        double smallest = std::numeric_limits<double>::infinity();
        for (std::size_t c = 1; c < header_.size(); ++c)
            if (!says_missing(line.cells[c])) smallest = std::min(smallest, value_at(line, c));
        table_.notes.push_back(
            fmt::format("the file does not have the baseline's perplexity: the smallest one of row {} ({}), {}, is "
                        "taken for it",
                        line.number, line.cells.front(), smallest));
        return smallest;
    }

    Metric metric_;
    std::optional<double> baseline_ppl_;
    std::vector<Line> lines_;
    std::vector<std::string> header_;
    std::map<std::string, int> type_rows_;
    DamageTable table_;
};

}  // namespace

DamageTable read_damage_csv(const std::filesystem::path& path, Metric metric, std::optional<double> baseline_ppl) {
    return CsvReader(path, metric, baseline_ppl).read();
}

}  // namespace cerebellum
