# Builds child.cpp next to the driver's own program, with the same settings. In a checkout of finn-cpp-driver:
#   echo 'include(PATH/TO/harness/children/finn_cpp/joulewatch.cmake)' >> src/FINNCppDriver/CMakeLists.txt
#   ./buildDependencies.sh && mkdir -p build && cd build
#   cmake -DCMAKE_BUILD_TYPE=Release -DFINN_ENABLE_SANITIZERS=Off -DFINN_HEADER_LOCATION=PATH/TO/FinnDriverUsedDatatypes.h ..
#   make joulewatch_child
# -DJOULEWATCH_PRECISION=int5 is the network's precision in results.
add_executable(joulewatch_child ${CMAKE_CURRENT_LIST_DIR}/child.cpp)
target_include_directories(joulewatch_child SYSTEM PRIVATE ${XRT_INCLUDE_DIRS})
target_include_directories(joulewatch_child PRIVATE ${FINN_SRC_DIR})
target_link_directories(joulewatch_child PRIVATE ${XRT_LIB_CORE_LOCATION} ${XRT_LIB_OCL_LOCATION} ${BOOST_LIBRARYDIR})
target_link_libraries(joulewatch_child PRIVATE finnc_core finnc_options Threads::Threads OpenCL xrt_coreutil uuid
                      finnc_utils finn_config ${Boost_LIBRARIES} nlohmann_json::nlohmann_json OpenMP::OpenMP_CXX)
if(DEFINED JOULEWATCH_PRECISION)
  target_compile_definitions(joulewatch_child PRIVATE PRECISION="${JOULEWATCH_PRECISION}")
endif()
