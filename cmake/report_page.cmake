# The page of `cerebellum report`: bundled from report/web/ and compiled into the library.
option(CEREBELLUM_REPORT "Build the report's page (needs npm and, the first time, a network)" ON)

set(report_web ${CMAKE_CURRENT_SOURCE_DIR}/cerebellum/report/web)
if(NOT CEREBELLUM_REPORT)
  set(report_page_source ${report_web}/no_page.cpp)
  return()
endif()

find_program(CEREBELLUM_NPM npm)
find_program(CEREBELLUM_NODE NAMES node nodejs)
if(NOT CEREBELLUM_NPM OR NOT CEREBELLUM_NODE)
  message(FATAL_ERROR "npm and node are needed for the report's page: install them (scripts/system-packages.sh build), "
                      "or build without the page (-DCEREBELLUM_REPORT=OFF)")
endif()
set(report_build ${CMAKE_CURRENT_BINARY_DIR}/report-web)
set(report_page_source ${report_build}/report_page.cpp)
file(GLOB report_page_files CONFIGURE_DEPENDS ${report_web}/src/*)
add_custom_command(
  OUTPUT ${report_build}/packages-complete
  COMMAND ${CMAKE_COMMAND} -DNPM=${CEREBELLUM_NPM} -DSOURCE=${report_web} -DFOLDER=${report_build}
          -P ${CMAKE_CURRENT_SOURCE_DIR}/cmake/npm_packages.cmake
  DEPENDS ${report_web}/package.json ${report_web}/package-lock.json ${CMAKE_CURRENT_SOURCE_DIR}/cmake/npm_packages.cmake
  COMMENT "Fetching the packages of the report's page" VERBATIM)
add_custom_command(
  OUTPUT ${report_page_source}
  COMMAND ${CMAKE_COMMAND} -E rm -rf ${report_build}/src
  COMMAND ${CMAKE_COMMAND} -E copy_directory ${report_web}/src ${report_build}/src
  COMMAND ${CMAKE_COMMAND} -E copy ${report_web}/build.mjs ${report_build}/build.mjs
  COMMAND ${CEREBELLUM_NODE} build.mjs ${report_page_source}
  DEPENDS ${report_build}/packages-complete ${report_page_files} ${report_web}/build.mjs
  WORKING_DIRECTORY ${report_build} COMMENT "Bundling the report's page" VERBATIM)
