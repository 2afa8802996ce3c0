# Installation and the CMake package, so that find_package(cerebellum) gives cerebellum::cerebellum.
