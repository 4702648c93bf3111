axis K, V
input q: [K]
