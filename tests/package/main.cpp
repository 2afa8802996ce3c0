#include "cerebellum/core/size.h"
#include "cerebellum/version.h"

#include <cstdio>

int main(int argc, char** argv) {
    const auto bytes = cerebellum::parse_size(argc > 1 ? argv[1] : "11.5GiB").bytes(0);
    std::printf("cerebellum %s: %llu bytes\n", CEREBELLUM_VERSION, static_cast<unsigned long long>(bytes));
    return 0;
}
