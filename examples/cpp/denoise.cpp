// Loads a package that toma_fx.export wrote and runs denoising steps, without Python.
//
//   denoise PACKAGE INPUTS TIMESTEP LATENTS [STEPS]
//
// INPUTS is `torch.save` of the list of the call's tensors in the order of the package's inputs
// (`inputs` of an entry of `toma_fx.load(path).metadata`). TIMESTEP and LATENTS are names of two of
// them. Each step sets the timestep to a falling share of its first value, calls the model, and
// moves the latents by a step of Euler's method, as a flow-matching sampler does.
//
// A package holds native code: load only what you trust.

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using torch::inductor::AOTIModelPackageLoader;

// Entries of the guard's tally, as in toma_fx/guard.py. Writing 2 to its first entry forgets the
// plans: the next picture then selects anew, whatever its timestep.
constexpr int64_t kSelections = 2, kWeighings = 3, kReuses = 4;

std::vector<at::Tensor> read_tensors(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  const c10::IValue list = torch::jit::pickle_load(bytes);
  std::vector<at::Tensor> tensors;
  for (const c10::IValue& item : list.toListRef()) tensors.push_back(item.toTensor());
  return tensors;
}

size_t place_of(AOTIModelPackageLoader& loader, const std::string& name) {
  std::stringstream names(loader.get_metadata().at("toma_fx_inputs"));
  std::string found;
  for (size_t place = 0; std::getline(names, found, ','); ++place)
    if (found == name) return place;
  throw std::runtime_error("the package has no input " + name);
}

// The plans and the guard are constants of the package, which it changes from call to call. This is
// the package's own memory.
at::Tensor tally_of(AOTIModelPackageLoader& loader) {
  auto constants = loader.get_runner()->extract_constants_map(/*use_inactive=*/false);
  auto found = constants.find("toma_guard_tally");
  if (found == constants.end()) throw std::runtime_error("nothing is merged in this package");
  return found->second;
}

void denoise(AOTIModelPackageLoader& loader, std::vector<at::Tensor> inputs, size_t timestep,
             size_t latents, int steps) {
  const at::Tensor start = inputs.at(timestep).clone();
  for (int step = 0; step < steps; ++step) {
    const double left = 1.0 - static_cast<double>(step) / steps;
    inputs[timestep] = start * left;
    const at::Tensor output = loader.run(inputs).at(0);
    inputs[latents] = inputs[latents] - output / static_cast<double>(steps);
    std::printf("step %d %.9g\n", step, inputs[latents].abs().mean().item<double>());
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr, "usage: denoise PACKAGE INPUTS TIMESTEP LATENTS [STEPS]\n");
    return 2;
  }
  try {
    c10::InferenceMode inference;
    AOTIModelPackageLoader loader(argv[1]);
    const auto inputs = read_tensors(argv[2]);
    const size_t timestep = place_of(loader, argv[3]), latents = place_of(loader, argv[4]);
    const int steps = argc > 5 ? std::max(1, std::atoi(argv[5])) : 10;
    denoise(loader, inputs, timestep, latents, steps);
    const at::Tensor tally = tally_of(loader);
    const auto count = [&](int64_t entry) {
      return static_cast<long long>(tally[entry].item<int64_t>());
    };
    std::printf("selections %lld weighings %lld reuses %lld\n", count(kSelections),
                count(kWeighings), count(kReuses));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "denoise: %s\n", error.what());
    return 1;
  }
}
