# cmake -DNPM= -DSOURCE= -DFOLDER= -P npm_packages.cmake
# Installs what SOURCE/package-lock.json lists, checked by its hashes, to FOLDER/node_modules.
file(MAKE_DIRECTORY ${FOLDER})
file(COPY ${SOURCE}/package.json ${SOURCE}/package-lock.json DESTINATION ${FOLDER})
execute_process(COMMAND ${NPM} ci --ignore-scripts --no-audit --no-fund --prefer-offline WORKING_DIRECTORY ${FOLDER}
                RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(status)
  message(FATAL_ERROR "npm could not fetch the packages of the report's page:\n${output}\n"
                      "Without a network, build without the page: cmake -DCEREBELLUM_REPORT=OFF")
endif()
file(TOUCH ${FOLDER}/packages-complete)
