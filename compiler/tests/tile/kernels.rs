//! Tile programs written by hand, used by several tests.

/// Linear attention, token by token: S ← S + k vᵀ, o = Sᵀ q.
pub const RECURRENT: &str = "\
kernel linear_attention.recurrent.forward {
  arg q : f32 token[3] read
  arg k : f32 token[3] read
  arg v : f32 token[2] read
  arg init.S : f32 sequence[3, 2] read
  arg out.o : f32 token[2] write
  arg final.S : f32 sequence[3, 2] write
  buf %S : [3, 2]
  buf %o : [2]
  for i in 0 .. 3 {
    lanes j in 0 .. 2 {
      %S[i, j] = init.S[i, j]
    }
  }
  for t in 0 .. T {
    lanes j_1 in 0 .. 2 {
      %o[j_1] = 0.0
    }
    for i_1 in 0 .. 3 {
      local x0 = k[t, i_1]
      local x1 = q[t, i_1]
      lanes j_2 in 0 .. 2 {
        %S[i_1, j_2] = %S[i_1, j_2] + x0 * v[t, j_2]
        %o[j_2] = %o[j_2] + x1 * %S[i_1, j_2]
      }
    }
    lanes j_3 in 0 .. 2 {
      out.o[t, j_3] = %o[j_3]
    }
  }
  for i_2 in 0 .. 3 {
    lanes j_4 in 0 .. 2 {
      final.S[i_2, j_4] = %S[i_2, j_4]
    }
  }
}
";

/// The same in chunks of 4 tokens, through products.
pub const CHUNKWISE: &str = "\
kernel linear_attention.chunkwise.forward {
  arg q : f32 token[3] read
  arg k : f32 token[3] read
  arg v : f32 token[2] read
  arg init.S : f32 sequence[3, 2] read
  arg out.o : f32 token[2] write
  arg final.S : f32 sequence[3, 2] write
  arg saved.S : f32 chunk(4)[3, 2] write
  buf %S : [3, 2]
  buf %q : [4, 3]
  buf %k : [4, 3]
  buf %kt : [3, 4]
  buf %v : [4, 2]
  buf %p : [4, 4]
  buf %o : [4, 2]
  for i in 0 .. 3 {
    lanes j in 0 .. 2 {
      %S[i, j] = init.S[i, j]
    }
  }
  for c in 0 .. chunks(4) {
    for i_1 in 0 .. 3 {
      lanes j_1 in 0 .. 2 {
        saved.S[c, i_1, j_1] = %S[i_1, j_1]
      }
    }
    for r in 0 .. 4 {
      lanes a in 0 .. 3 {
        %q[r, a] = q[min(4*c + r, T - 1), a]
        %k[r, a] = select(4*c + r < T, k[min(4*c + r, T - 1), a], 0.0)
      }
      for a_1 in 0 .. 3 {
        %kt[a_1, r] = %k[r, a_1]
      }
      lanes b in 0 .. 2 {
        %v[r, b] = v[min(4*c + r, T - 1), b]
      }
    }
    matmul %p[4, 4] = %q[4, 3] * %kt[3, 4] lower
    for r_1 in 0 .. 4 {
      lanes s in 0 .. 4 {
        %p[r_1, s] = select(s <= r_1, %p[r_1, s], 0.0)
      }
    }
    matmul %o[4, 2] = %q[4, 3] * %S[3, 2]
    matmul %o[4, 2] += %p[4, 4] * %v[4, 2] lower_left
    matmul %S[3, 2] += %k[3, 4 step 1, 16] * %v[4, 2]
    for r_2 in 0 .. min(4, T - 4*c) {
      lanes b_1 in 0 .. 2 {
        out.o[4*c + r_2, b_1] = %o[r_2, b_1]
      }
    }
  }
  for i_2 in 0 .. 3 {
    lanes j_2 in 0 .. 2 {
      final.S[i_2, j_2] = %S[i_2, j_2]
    }
  }
}
";

/// Every kind of statement, expression and declaration there is.
pub const EVERYTHING: &str = "\
kernel everything {
  arg x : bf16 token[5] read
  arg g : f16 token[] read
  arg w : f32 head[] read
  arg u : f32 head[2, 5] read
  arg y : f32 token[5] write
  arg peak : f32 sequence[] write
  arg last : f32 chunk(3)[] write
  buf %a : [2, 5]
  buf %b : [2, 5]
  buf %c : [2, 2]
  buf %d : [5, 5]
  buf %m : [1]
  for i in 0 .. 2 {
    lanes j in 0 .. 5 {
      %a[i, j] = u[i, j] - (1.0 - 2.0) / (-3.5 * 4e-7)
      %b[i, j] = neg(exp(expm1(log(sqrt(recip(abs(sign(square(sigmoid(log_sigmoid(softplus(tanh(u[i, j])))))))))))))
    }
  }
  %m[0] = -inf
  %m[0] += max e in 0 .. 5 of %a[1, e]
  %m[0] = sum f in 0 .. 5 of %a[0, f] * %a[1, f]
  peak[] = select_value(%m[0] < w[], max(%m[0], 1.0), min(w[], inf))
  matmul %c[2, 2] = %a[2, 2 at 1] * %b[2, 2 at 2] lower
  matmul %c[1, 1 at 16] -= %a[1, 4 at 1] * %b[4, 1 step 1, 1]
  matmul %c[1, 1 at 1] = %c[1, 1] * %c[1, 1 at 16] upper_left
  matmul %d[5, 5] = %a[5, 2 step 1, 16] * %b[2, 5]
  for t in reverse 0 .. T {
    if t == 0 {
      local x0 = pow(g[t], 2.0) + sin(w[]) * cos(w[]) + erf(w[])
      lanes l in 0 .. 5 {
        local x1 = x0
        x1 = x1 * x[t, l]
        for n in 0 .. 2 {
          x1 = x1 + %a[n, l] * select(l <= 2*n, 1.0, 0.25)
        }
        y[t, l] = x1
      }
    }
    if 1 <= t {
      lanes l_1 in 0 .. 5 {
        y[t, l_1] = select_value(x[t, l_1] == 0.0, 1.0, x[t, l_1])
      }
    }
  }
  for c in 0 .. chunks(3) {
    if 3*c + 2 < T {
      last[c] = g[3*c + 2]
    }
    if T <= 3*c + 2 {
      last[c] = g[T - 1]
    }
  }
}
";
