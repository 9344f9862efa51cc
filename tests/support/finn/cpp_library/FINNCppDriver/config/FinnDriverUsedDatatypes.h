#pragma once
using InputFinnType = Finn::Int8;
using OutputFinnType = Finn::Int8;
namespace Finn {
template <bool> using Driver = Library;
}
