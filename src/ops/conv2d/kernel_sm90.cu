#include "windows_sm90.cuh"
